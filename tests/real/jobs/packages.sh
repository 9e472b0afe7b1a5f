# Real packages come, change version, go, and come back. dpkg checks every file against its sum.
cd /packages
dpkg -i install/*.deb
must_be "$(hello)" "Hello, world!"
must_be "$(echo '2^100' | bc)" 1267650600228229401496703205376
must_be "$(dpkg --audit)" ""

# Newer versions of perl, openssl, apt itself and others, as an upgrade brings them.
if ls upgrade/*.deb >/dev/null 2>&1; then
    apt-get -q -y install ./upgrade/*.deb
fi

# A version of our own, with a file less, a file more and a directory where a file was.
dpkg-deb -R install/hello_*.deb hello
sed -i 's/^Version: .*/&+local1/' hello/DEBIAN/control
sed -i '/usr\/share\/info\//d' hello/DEBIAN/md5sums
rm -r hello/usr/share/info
mkdir -p hello/usr/share/hello/more
echo more >hello/usr/share/hello/more/file
chmod -R g-s hello
dpkg-deb --root-owner-group -b hello hello-local.deb
dpkg -i hello-local.deb
test ! -e /usr/share/info/hello.info.gz
must_be "$(cat /usr/share/hello/more/file)" more
dpkg -i --force-downgrade install/hello_*.deb
test ! -e /usr/share/hello/more
test -e /usr/share/info/hello.info.gz

apt-get -q -y remove bc less
test ! -e /usr/bin/bc
apt-get -q -y purge vim-tiny vim-common xxd
test ! -e /etc/vim
apt-get -q -y install ./install/bc_*.deb ./install/vim-*.deb ./install/xxd_*.deb
apt-get -q -y --reinstall install ./install/tree_*.deb ./install/tzdata_*.deb
apt-get -q -y purge file
must_be "$(dpkg --verify)" ""
must_be "$(dpkg --audit)" ""
rm -r hello hello-local.deb

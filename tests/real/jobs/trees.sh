# Trees that lie below are removed, made again, moved, copied and changed.
cd /usr/share
find doc -type f | sort >/root/doc.before
rm -rf doc
test ! -e doc
mkdir doc
must_be "$(ls -A doc)" ""
mkdir -p doc/bash/new doc/apt
echo new >doc/apt/copyright
rm -rf doc/bash
mkdir doc/bash
must_be "$(ls -A doc/bash)" ""

# mv(1) copies where a rename gives EXDEV; here nothing but the result counts.
before=$(cd zoneinfo/America && find . -type f -exec sha256sum {} + | sort | sha256sum)
mv zoneinfo/America zoneinfo/Elsewhere
must_be "$(cd zoneinfo/Elsewhere && find . -type f -exec sha256sum {} + | sort | sha256sum)" "$before"
test ! -e zoneinfo/America
mkdir zoneinfo/America
echo new >zoneinfo/America/New_York
mv /etc/apt /etc/apt.old
cp -a /etc/apt.old /etc/apt
rm -rf /etc/apt.old
before=$(find /usr/share/perl5 | sort | sha256sum)
mv /usr/share/perl5 /usr/share/perl5.moved
mv /usr/share/perl5.moved /usr/share/perl5
must_be "$(find /usr/share/perl5 | sort | sha256sum)" "$before"

# Names take each other's place, files of the init branch among them. (rlaunch shows its own hosts and hostname.)
cd /etc
mv one three
mv two one
mv three two
mv two four
mv one five
mv five two
mv four one
ln passwd passwd.link
echo 'extra:x:4711:4711::/:/bin/false' >>passwd
must_be "$(tail -n 1 passwd.link)" 'extra:x:4711:4711::/:/bin/false'
mv passwd.link passwd.other
rm passwd
mv passwd.other passwd

# Attributes of what lies below.
chmod -R g+w /usr/share/man 2>/dev/null || true
chown -R 4711:4712 /usr/lib/git-core
find /usr/share/common-licenses -type f -exec touch -d '2001-02-03T04:05:06' {} +
cp -a /usr/lib/python3.11 /root/python3.11
rm -rf /usr/lib/python3.11/collections
cp -a /root/python3.11/collections /usr/lib/python3.11/collections
tar -C /usr/lib -cf - git-core | (mkdir /root/unpacked && tar -C /root/unpacked -xf -)
truncate -s 5M /usr/bin/git
truncate -s 10 /etc/services 2>/dev/null || truncate -s 10 /etc/profile
rm -rf /srv/tree
mkdir -p /srv/tree/a
rm /srv/sparse /srv/fifo
mkfifo /srv/sparse
mkdir /srv/fifo
echo replaced >/srv/linked

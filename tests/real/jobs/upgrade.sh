# A directory of a package becomes a symlink, and one of its maintainer's scripts moves trees.
dpkg -i /root/mover_2.deb
must_be "$(readlink /usr/share/mover)" mover-data
must_be "$(cat /usr/share/mover/sub/file)" "version 2"
test -e /usr/lib/python3.11/json/__init__.py
must_be "$(dpkg --verify mover)" ""
dpkg -i --force-downgrade /root/mover_1.deb
must_be "$(cat /usr/share/mover/sub/file)" "version 1"

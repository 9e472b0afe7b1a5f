# Two versions of a package whose directory becomes a symlink, and the first of them installed.
export SOURCE_DATE_EPOCH=1700000000
cd /root
for version in 1 2; do
    mkdir -p mover/DEBIAN
    printf 'Package: mover\nVersion: %s\nArchitecture: all\nMaintainer: A <a@example.org>\nDescription: moves\n' $version \
        >mover/DEBIAN/control
    data=mover/usr/share/mover
    [ $version = 1 ] || data=mover/usr/share/mover-data
    mkdir -p $data/sub
    echo "version $version" >$data/sub/file
    if [ $version = 2 ]; then
        for script in preinst postinst postrm; do
            printf '#!/bin/sh\nset -e\ndpkg-maintscript-helper dir_to_symlink /usr/share/mover mover-data 1.5 -- "$@"\n' \
                >mover/DEBIAN/$script
            chmod 755 mover/DEBIAN/$script
        done
        printf 'mv -T /usr/lib/python3.11 /usr/lib/python3.11.moved\nmv -T /usr/lib/python3.11.moved /usr/lib/python3.11\n' \
            >>mover/DEBIAN/preinst
    fi
    chmod -R g-s mover
    dpkg-deb --root-owner-group -b mover mover_$version.deb
    rm -r mover
done
dpkg -i mover_1.deb

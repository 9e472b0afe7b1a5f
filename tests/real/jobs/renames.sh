# Directories that lie below are renamed: by mv, by programs, and as npm does it.
renamed() { python3 -c 'import os, sys; os.rename(*sys.argv[1:])' "$@"; }

# All of Python's packages, there and back, and Python itself while it runs.
mv /usr/lib/python3 /usr/lib/python3x
test ! -e /usr/lib/python3
mv /usr/lib/python3x /usr/lib/python3
python3 -c '
import os, sys
library = os.path.dirname(os.__file__)
os.rename(library, library + "x")
os.rename(library + "x", library)
import json, decimal, sqlite3
assert json.loads("[1]") == [1]
'
# A chain: down into what was just moved, out of it again, and a new tree under the old name.
renamed /usr/share/perl /usr/share/perl.moved
renamed /usr/share/doc /usr/share/perl.moved/doc
renamed /usr/share/perl.moved/doc/perl-base /usr/share/perl-base.doc
mkdir -p /usr/share/doc/apt
echo new >/usr/share/doc/apt/new
renamed /usr/share/doc /usr/share/doc.new
renamed /usr/share/perl.moved/doc /usr/share/doc
renamed /usr/share/perl-base.doc /usr/share/doc/perl-base
renamed /usr/share/perl.moved /usr/share/perl
perl -e 'use strict; use File::Find; use POSIX; print POSIX::floor(1.5), "\n"' | grep -q -x 1
rm -r /usr/share/doc.new

# npm puts what it replaces aside as .NAME-RANDOM; when a step fails, all of that comes back.
python3 - <<'END'
import os, shutil
modules = "/usr/lib/python3.11"
packages = sorted(entry.name for entry in os.scandir(modules) if entry.is_dir(follow_symlinks=False))
assert len(packages) > 20
retired = [(os.path.join(modules, name), os.path.join(modules, "." + name + "-mZq0Xw1d")) for name in packages]
for place, aside in retired:
    os.rename(place, aside)
    os.makedirs(os.path.join(place, "lib"))
    with open(os.path.join(place, "package.json"), "w") as file:
        file.write("{}\n")
for place, aside in retired:
    shutil.rmtree(place)
    os.rename(aside, place)
END
python3 -c 'import json, email, xml.dom.minidom, unittest'
python3 - <<'END'
import os, shutil
for entry in sorted(os.listdir("/usr/share/locale"))[:20]:
    place = os.path.join("/usr/share/locale", entry)
    if os.path.isdir(place):
        aside = os.path.join("/usr/share/locale", "." + entry + "-mZq0Xw1d")
        os.rename(place, aside)
        shutil.copytree(aside, place, symlinks=True)
        shutil.rmtree(aside)
END

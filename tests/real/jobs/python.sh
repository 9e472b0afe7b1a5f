# Python writes, maps, renames and compiles.
mkdir -p /root/python/package
cd /root/python
python3 -c '
import os, mmap, sys
with open("data", "wb") as f:
    for number in range(100000):
        f.write(b"%08d\n" % number)
with open("data", "r+b") as f:
    view = mmap.mmap(f.fileno(), 0)
    view[9 * 5000:9 * 5000 + 8] = b"mappings"
    assert view.find(b"00099999") == 9 * 99999
    view.flush()
    view.close()
os.rename("data", "renamed")
data = open("renamed", "rb").read()
assert data.split(b"\n")[5000] == b"mappings" and len(data) == 900000
for number in range(300):
    open("package/module%d.py" % number, "w").write("value = %d\n" % number)
    os.utime("package/module%d.py" % number, (1700000000, 1700000000))
open("package/__init__.py", "w").close()
os.utime("package/__init__.py", (1700000000, 1700000000))
'
python3 -c '
import importlib
assert sum(importlib.import_module("package.module%d" % n).value for n in range(300)) == 44850
'
must_be "$(ls package/__pycache__ | wc -l)" 301
# A module of the system, which lies below, is replaced while it is in use.
python3 -c '
import os, stat
path = os.__file__
text = open(path).read()
temporary = path + ".new"
open(temporary, "w").write(text + "\n# changed\n")
os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode))
os.utime(temporary, (1700000000, 1700000000))
os.rename(temporary, path)
'
must_be "$(python3 -c 'import os; print(open(os.__file__).read().count("# changed"))')" 1

# A repository of real files is made, cloned with hard links, changed, packed and checked.
mkdir -p /root/git
# Threads would share the work of packing differently each time.
git config --global pack.threads 1
cd /root/git
cp -r /usr/share/perl/ source
cd source
git init -q -b main .
git config gc.auto 0
git add .
git commit -q -m first
for n in 1 2 3 4 5; do
    git checkout -q -b "topic$n" main
    echo "$n" >"new$n"
    git mv "$(git ls-files | sed -n "${n}00p")" "moved$n"
    git rm -q "$(git ls-files | sed -n "${n}50p")"
    git add "new$n"
    git commit -q -m "topic $n"
done
git checkout -q main
git -c merge.renames=false merge -q -m merged topic1 topic2 topic3
git clone -q . ../clone
git clone -q "file://$PWD" ../packed
git gc -q --prune=now
git fsck --strict
cd ../clone
git checkout -q topic5
git checkout -q main
git repack -q -a -d
git fsck --strict
must_be "$(git status --porcelain)" ""
must_be "$(git rev-parse main)" "$(git -C ../packed rev-parse main)"
git -C ../source worktree add -q ../tree topic4
must_be "$(git -C ../tree status --porcelain)" ""
must_be "$(cat ../tree/new4)" 4

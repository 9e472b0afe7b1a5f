//! The lines of README's tables: which workloads, under which names.

/// One line of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    /// The workload.
    pub(crate) row: &'static str,
    /// What it is called there.
    pub(crate) label: &'static str,
}

const fn line(row: &'static str, label: &'static str) -> Line {
    Line { row, label }
}

/// A table that is measured both ways, by plot: the plot's name, its title, its lines.
pub(crate) const TIMES: &[(&str, &str, &[Line])] =
    &[("metadata", "metadata", METADATA), ("files", "files", FILES), ("work", "real work", WORK)];

const METADATA: &[Line] = &[
    line("stat-warm", "stat of 20,000, warm"),
    line("stat-cold", "stat of 20,000, cold mount"),
    line("depth-stat-50", "stat of 5,000 cold, 50 branches"),
    line("miss-repeated", "repeated miss"),
    line("miss-unique", "unique miss"),
    line("depth-miss-50", "unique miss, 50 branches"),
    line("find-warm", "find, warm"),
    line("find-cold", "find, cold mount"),
    line("depth-find-50", "find, cold mount, 50 branches"),
    line("du-warm", "du, warm"),
    line("ls-warm", "ls -lR, warm"),
    line("readdir-warm", "readdir of 50,000, warm"),
    line("readdir-cold", "readdir of 50,000, cold mount"),
];

const FILES: &[Line] = &[
    line("open-close", "open and close"),
    line("ro-open-close", "open and close, no writable branch"),
    line("open-read", "open and read, warm"),
    line("open-read-4", "open and read, warm, 4 threads"),
    line("open-read-cold", "open and read, cold mount"),
    line("ro-open-read", "open and read, no writable branch"),
    line("ro-open-read-4", "the same, 4 threads"),
    line("create-4k", "create and write 4 KiB"),
    line("unlink", "unlink"),
    line("mkdir", "mkdir"),
    line("rmdir", "rmdir"),
    line("rename", "rename"),
    line("unlink-lower", "unlink of lower files"),
    line("rename-lower", "rename of lower files"),
];

const WORK: &[Line] = &[
    line("tar-x", "tar x of 20,000 files"),
    line("cp-a", "cp -a of 20,000 files"),
    line("rm-rf", "rm -rf of 20,000 files"),
    line("rm-rf-lower", "rm -rf of 20,000 lower files"),
    line("git-status-cold", "git status, cold mount"),
    line("git-status", "git status, warm"),
    line("git-checkout", "git checkout"),
    line("c-build", "C build"),
    line("rust-build", "Rust build"),
    line("sqlite", "sqlite, 1,000 transactions"),
    line("python", "Python start"),
    line("dpkg", "dpkg -i of 20 packages"),
    line("container", "container start"),
];

/// What is told as an amount.
pub(crate) const DATA: &[Line] = &[
    line("fio-seqread", "sequential read"),
    line("fio-randread", "random read, 4 KiB"),
    line("fio-randread-4", "random read, 4 KiB, 4 processes"),
    line("fio-mmapread", "random read through a mapping"),
    line("fio-seqwrite", "sequential write"),
    line("fio-seqwrite-4k", "sequential write, 4 KiB"),
    line("fio-randwrite", "random write, 4 KiB"),
    line("fio-mmapwrite", "random write through a mapping"),
    line("fio-fsync", "write 4 KiB and fsync"),
    line("write-64m", "first write to a lower file of 64 MiB"),
    line("write-1g", "first write to a lower file of 1 GiB"),
    line("chmod-1g", "chmod of a lower file of 1 GiB"),
    line("reflink-btrfs-write-64m", "first write, 64 MiB, all on btrfs"),
    line("reflink-btrfs-write-1g", "first write, 1 GiB, all on btrfs"),
    line("reflink-xfs-write-64m", "first write, 64 MiB, all on xfs"),
    line("reflink-xfs-write-1g", "first write, 1 GiB, all on xfs"),
    line("unlink-4k", "removal of a lower file of 4 KiB"),
    line("unlink-1g", "removal of a lower file of 1 GiB"),
    line("latency-idle", "statx, 99th percentile"),
    line("latency-copy-up", "the same during a copy-up of 1 GiB"),
    line("mount-1", "mount over 1 branch"),
    line("mount-500", "mount over 500 branches"),
    line("rss-72k", "memory after 72,000 files"),
    line("rss-200k", "memory after 200,000 files"),
    line("page-cache", "page cache, 4 mounts that read 500 MiB"),
];

/// What is measured on those that start containers.
pub(crate) const LAUNCH: &[Line] = &[
    line("launch-tree", "`true` in a directory"),
    line("launch-union", "`true` in a union of 5 branches"),
    line("launch-exec", "`true` in a container that runs"),
    line("launch-copy", "`true` in a copy of the machine"),
];

/// What is measured without passthrough, and rootless.
pub(crate) const MODES: &[Line] = &[
    line("stat-warm", "stat of 20,000, warm"),
    line("stat-cold", "stat of 20,000, cold mount"),
    line("miss-repeated", "repeated miss"),
    line("find-warm", "find, warm"),
    line("ls-warm", "ls -lR, warm"),
    line("readdir-warm", "readdir of 50,000, warm"),
    line("open-close", "open and close"),
    line("open-read", "open and read, warm"),
    line("create-4k", "create and write 4 KiB"),
    line("unlink", "unlink"),
    line("mkdir", "mkdir"),
    line("rename", "rename"),
    line("tar-x", "tar x of 20,000 files"),
    line("rm-rf", "rm -rf of 20,000 files"),
    line("git-status", "git status, warm"),
    line("c-build", "C build"),
    line("sqlite", "sqlite, 1,000 transactions"),
    line("dpkg", "dpkg -i of 20 packages"),
    line("container", "container start"),
    line("write-64m", "first write to a lower file of 64 MiB"),
    line("fio-seqread", "sequential read (bandwidth)"),
    line("fio-randread", "random read (bandwidth)"),
    line("fio-seqwrite", "sequential write (bandwidth)"),
    line("fio-seqwrite-4k", "sequential write, 4 KiB (bandwidth)"),
    line("fio-randwrite", "random write, 4 KiB (bandwidth)"),
    line("fio-mmapwrite", "random write through a mapping (bandwidth)"),
    line("rss-72k", "memory after 72,000 files"),
    line("page-cache", "page cache, 4 mounts that read 500 MiB"),
];

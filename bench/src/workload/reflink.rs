//! Copy-up within one file system whose files can share data: nothing needs to be copied.

use super::copy_up::{chmod_large, chmod_medium, chmod_small, write_large, write_medium, write_small};
use super::{Job, Place, Workload};
use crate::medium::Medium;
use crate::tree::Tree;

const FAMILY: &str = "reflink";

pub(super) const WORKLOADS: &[Workload] = &[
    row("reflink-btrfs-write-100x4k", "on btrfs: first write to 100 lower files of 4 KiB", Medium::Btrfs, write_small),
    row("reflink-btrfs-write-64m", "on btrfs: first write to a lower file of 64 MiB", Medium::Btrfs, write_medium),
    row("reflink-btrfs-write-1g", "on btrfs: first write to a lower file of 1 GiB", Medium::Btrfs, write_large),
    row("reflink-btrfs-chmod-100x4k", "on btrfs: chmod of 100 lower files of 4 KiB", Medium::Btrfs, chmod_small),
    row("reflink-btrfs-chmod-64m", "on btrfs: chmod of a lower file of 64 MiB", Medium::Btrfs, chmod_medium),
    row("reflink-btrfs-chmod-1g", "on btrfs: chmod of a lower file of 1 GiB", Medium::Btrfs, chmod_large),
    row("reflink-xfs-write-100x4k", "on xfs: first write to 100 lower files of 4 KiB", Medium::Xfs, write_small),
    row("reflink-xfs-write-64m", "on xfs: first write to a lower file of 64 MiB", Medium::Xfs, write_medium),
    row("reflink-xfs-write-1g", "on xfs: first write to a lower file of 1 GiB", Medium::Xfs, write_large),
    row("reflink-xfs-chmod-100x4k", "on xfs: chmod of 100 lower files of 4 KiB", Medium::Xfs, chmod_small),
    row("reflink-xfs-chmod-64m", "on xfs: chmod of a lower file of 64 MiB", Medium::Xfs, chmod_medium),
    row("reflink-xfs-chmod-1g", "on xfs: chmod of a lower file of 1 GiB", Medium::Xfs, chmod_large),
];

const fn row(
    name: &'static str,
    about: &'static str,
    medium: Medium,
    run: fn(&Place<'_>) -> std::io::Result<Job<()>>,
) -> Workload {
    Workload::timed(name, about, Tree::Big, run).changes().lies_on(medium).of(FAMILY)
}

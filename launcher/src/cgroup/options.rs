//! The options for limits, as they are typed.

use std::path::PathBuf;

use clap::Args;

use super::cpu::{Bandwidth, parse_cpus};
use super::cpuset::CpuList;
use super::io::{Rate, parse_bytes_rate, parse_operations_rate};
use super::memory::{MemoryAndSwap, parse_size};
use super::network::NetworkClass;

/// What a container may use of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitOptions {
    /// So many CPUs' time, as 0.5 or 2; the container also sees no more CPUs than that, rounded up
    #[arg(long, value_name = "NUMBER", value_parser = parse_cpus, conflicts_with_all = ["cpu_period", "cpu_quota"])]
    pub cpus: Option<Bandwidth>,

    /// Let it see all CPUs in spite of --cpus
    #[arg(long, requires = "cpus")]
    pub no_cpu_pin: bool,

    /// The period over which CPU time is counted, in microseconds: 1000 to 1000000
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u64).range(1_000..=1_000_000))]
    pub cpu_period: Option<u64>,

    /// CPU time in each period, in microseconds: 1000 or more
    #[arg(long, value_name = "MICROSECONDS", value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    pub cpu_quota: Option<u64>,

    /// Its share of CPU time where there is not enough, 2 to 262144; everybody else has 1024
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(2..=262_144))]
    pub cpu_shares: Option<u64>,

    /// The CPUs it may run on, as 0-2,4
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<CpuList>,

    /// The memory nodes it may use, as 0-1
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<CpuList>,

    /// Memory, page cache included, as 512m or 2g
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    pub memory: Option<u64>,

    /// Memory and swap together, as 1g; the same as --memory for no swap, -1 for no limit; twice --memory without it
    #[arg(long, value_name = "SIZE", requires = "memory", allow_hyphen_values = true)]
    pub memory_swap: Option<MemoryAndSwap>,

    /// The number of processes and threads
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..=4_194_304))]
    pub pids_limit: Option<u64>,

    /// Its share of the disks' time where there is not enough, 10 to 1000; everybody else has 100
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(10..=1000))]
    pub blkio_weight: Option<u16>,

    /// Bytes read from a block device in a second, as /dev/sda:10m
    #[arg(long, value_name = "DEVICE:RATE", value_parser = parse_bytes_rate)]
    pub device_read_bps: Vec<Rate>,

    /// Bytes written to a block device in a second
    #[arg(long, value_name = "DEVICE:RATE", value_parser = parse_bytes_rate)]
    pub device_write_bps: Vec<Rate>,

    /// Reads from a block device in a second
    #[arg(long, value_name = "DEVICE:RATE", value_parser = parse_operations_rate)]
    pub device_read_iops: Vec<Rate>,

    /// Writes to a block device in a second
    #[arg(long, value_name = "DEVICE:RATE", value_parser = parse_operations_rate)]
    pub device_write_iops: Vec<Rate>,

    /// The class of its packets, as tc(8) writes it; what bandwidth the class has is tc's to say
    #[arg(long, value_name = "MAJOR:MINOR")]
    pub net_class: Option<NetworkClass>,

    /// The control group in which the container's is made, instead of /rlaunch
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<PathBuf>,

    /// Go on with a warning where a limit cannot be set
    #[arg(long)]
    pub best_effort_limits: bool,
}

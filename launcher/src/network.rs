//! What a container knows of names and addresses: its own `resolv.conf`, `hosts` and `hostname`.

//!
//! How what it sends gets out: `pasta`, and `publish` for the ports that lead in.

use std::ffi::OsStr;
use std::fs::File;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;

use nix::unistd::Pid;

use self::pasta::{NAME_SERVER, Pasta};
use self::publish::Published;
use crate::failure::{Doing as _, Failure};
use crate::namespace::Network;
use crate::process::signals::Signals;

pub(crate) mod pasta;
pub mod publish;

/// Names and addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkOptions {
    /// Ask this server for names instead of the host's
    #[arg(long, value_name = "ADDRESS")]
    pub dns: Vec<IpAddr>,

    /// Add a line to /etc/hosts
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = entry)]
    pub add_host: Vec<(String, IpAddr)>,

    /// With --net pasta, let a port of this machine lead to one of the container
    #[arg(short, long, value_name = "[ADDRESS:]HOSTPORT[:PORT][/udp]")]
    pub publish: Vec<Published>,

    /// With --net pasta, let a free port of this machine lead to each one that the image exposes, and say which
    #[arg(short = 'P', long, requires = "image")]
    pub publish_all: bool,
}

/// Gives the network of a container, whose first process is told, its way out.
pub(crate) fn connect(init: Pid, published: &[Published], signals: &Signals) -> Result<Pasta, Failure> {
    let network = File::open(format!("/proc/{init}/ns/net")).doing("open the container's network")?;
    Pasta::start(network.into(), published, signals)
}

fn entry(text: &str) -> Result<(String, IpAddr), String> {
    let (name, address) = text.split_once([':', '=']).ok_or("NAME:ADDRESS is expected")?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if name.is_empty() || !name.bytes().all(is_name) {
        return Err(format!("'{name}' is no host name"));
    }
    let address = address.trim_start_matches('[').trim_end_matches(']');
    Ok((name.to_owned(), address.parse().map_err(|_| format!("'{address}' is no address"))?))
}

/// What the host says of names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// Its `/etc/resolv.conf`.
    pub resolver: Vec<u8>,
    /// Its `/etc/hosts`.
    pub hosts: Vec<u8>,
}

/// A file in `/etc` of the container's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFile {
    /// Its path in the container.
    pub at: &'static str,
    /// What it says.
    pub content: Vec<u8>,
    /// Whether there is to be one also where the root has none: an empty file is then left in the root.
    pub is_made: bool,
}

impl NetworkOptions {
    /// The files for a root that is not the host's. One that is missing there stays so unless it was asked for: neither a
    /// tree of somebody's nor a top is changed by a start.
    #[must_use]
    pub fn files(&self, names: &Names, network: Network, hostname: Option<&OsStr>) -> Vec<OwnFile> {
        let mut files = self.files_over_the_hosts(names, network, hostname);
        let mut add = |at, content: Vec<u8>| {
            if !files.iter().any(|file| file.at == at) {
                files.push(OwnFile { at, content, is_made: false });
            }
        };
        if network != Network::None {
            add(RESOLVER, resolver(names, network));
        }
        add(HOSTS, self.hosts(names, network, hostname));
        files
    }

    /// The files for a copy of the host, which has the host's already.
    #[must_use]
    pub fn files_over_the_hosts(&self, names: &Names, network: Network, hostname: Option<&OsStr>) -> Vec<OwnFile> {
        let mut files = Vec::new();
        if !self.dns.is_empty() {
            let lines: String = self.dns.iter().map(|address| format!("nameserver {address}\n")).collect();
            files.push(OwnFile { at: RESOLVER, content: lines.into(), is_made: true });
        } else if network == Network::Pasta && resolver(names, network) != names.resolver {
            files.push(OwnFile { at: RESOLVER, content: resolver(names, network), is_made: false });
        }
        if !self.add_host.is_empty() {
            files.push(OwnFile { at: HOSTS, content: self.hosts(names, network, hostname), is_made: true });
        }
        if let Some(name) = hostname {
            let content = [name.as_bytes(), b"\n"].concat();
            files.push(OwnFile { at: HOSTNAME, content, is_made: false });
        }
        files
    }

    fn hosts(&self, names: &Names, network: Network, hostname: Option<&OsStr>) -> Vec<u8> {
        let mut content = match network {
            Network::Host => names.hosts.clone(),
            Network::None | Network::Pasta => {
                b"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_vec()
            }
        };
        if content.last().is_some_and(|last| *last != b'\n') {
            content.push(b'\n');
        }
        if let Some(name) = hostname {
            content.extend([b"127.0.1.1 ", name.as_bytes(), b"\n"].concat());
        }
        content.extend(self.add_host.iter().flat_map(|(name, address)| format!("{address} {name}\n").into_bytes()));
        content
    }
}

/// What a container reads in `/etc/resolv.conf`. Servers on the host's loopback interface cannot be reached from a network
/// of its own; the first stands for all of them, for it is the one that pasta asks.
fn resolver(names: &Names, network: Network) -> Vec<u8> {
    if network != Network::Pasta {
        return names.resolver.clone();
    }
    let text = String::from_utf8_lossy(&names.resolver);
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = if is_on_loopback(line) { format!("nameserver {NAME_SERVER}") } else { line.to_owned() };
        if !line.starts_with("nameserver") || !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect()
}

/// Whether a line names a server that listens on the loopback interface; see resolv.conf(5).
fn is_on_loopback(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let is_server = words.next() == Some("nameserver");
    is_server && words.next().and_then(|word| word.parse().ok()).is_some_and(|address: IpAddr| address.is_loopback())
}

const RESOLVER: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";
const HOSTNAME: &str = "/etc/hostname";

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Names {
        Names { resolver: b"nameserver 192.0.2.1\n".to_vec(), hosts: b"127.0.0.1 localhost".to_vec() }
    }

    #[test]
    fn entries_are_names_and_addresses() {
        assert_eq!(entry("web:192.0.2.7"), Ok(("web".into(), "192.0.2.7".parse().unwrap())));
        assert_eq!(entry("web=[2001:db8::1]"), Ok(("web".into(), "2001:db8::1".parse().unwrap())));
        assert_eq!(entry("web:2001:db8::1"), Ok(("web".into(), "2001:db8::1".parse().unwrap())));
        for text in ["web", "web:", ":192.0.2.7", "a b:192.0.2.7", "web:192.0.2", "web\nx:192.0.2.7"] {
            assert!(entry(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_root_of_its_own_gets_the_hosts_resolver_and_its_own_name() {
        let options = NetworkOptions { add_host: vec![entry("web:192.0.2.7").unwrap()], ..NetworkOptions::default() };
        let files = options.files(&names(), Network::Host, Some(OsStr::new("box")));
        let text = |at| String::from_utf8(files.iter().find(|file| file.at == at).unwrap().content.clone()).unwrap();
        assert_eq!(text(RESOLVER), "nameserver 192.0.2.1\n");
        assert_eq!(text(HOSTS), "127.0.0.1 localhost\n127.0.1.1 box\n192.0.2.7 web\n");
        assert_eq!(text(HOSTNAME), "box\n");
        let made: Vec<_> = files.iter().map(|file| (file.at, file.is_made)).collect();
        assert_eq!(made, [(HOSTS, true), (HOSTNAME, false), (RESOLVER, false)]);
    }

    #[test]
    fn without_a_network_only_the_container_itself_is_known() {
        let files = NetworkOptions::default().files(&names(), Network::None, None);
        assert_eq!(files.iter().map(|file| file.at).collect::<Vec<_>>(), [HOSTS]);
        assert!(files[0].content.starts_with(b"127.0.0.1 localhost\n::1 "));
    }

    #[test]
    fn servers_on_the_loopback_interface_are_asked_through_pasta() {
        let asked = |text: &str, network| {
            let names = Names { resolver: text.into(), ..Names::default() };
            String::from_utf8(resolver(&names, network)).unwrap()
        };
        let text = "nameserver 127.0.0.53\nnameserver ::1\nnameserver 192.0.2.1\noptions edns0\n";
        assert_eq!(asked(text, Network::Host), text);
        assert_eq!(asked(text, Network::Pasta), "nameserver 169.254.1.1\nnameserver 192.0.2.1\noptions edns0\n");
        let names = Names { resolver: text.into(), ..Names::default() };
        let copy = |network| NetworkOptions::default().files_over_the_hosts(&names, network, None);
        assert_eq!(copy(Network::Pasta).iter().map(|file| file.at).collect::<Vec<_>>(), [RESOLVER]);
        assert!(copy(Network::Host).is_empty());
    }

    #[test]
    fn a_copy_of_the_host_keeps_the_hosts_files_unless_asked() {
        assert_eq!(NetworkOptions::default().files_over_the_hosts(&names(), Network::Host, None), []);
        let dns = vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()];
        let files =
            NetworkOptions { dns, ..NetworkOptions::default() }.files_over_the_hosts(&names(), Network::Host, None);
        assert_eq!((files.len(), files[0].at), (1, RESOLVER));
        assert_eq!(files[0].content, b"nameserver 192.0.2.53\nnameserver 2001:db8::53\n");
    }
}

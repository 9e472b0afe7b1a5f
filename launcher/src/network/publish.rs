//! Ports of the machine that lead into the container.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::str::FromStr;

/// Ports of this machine, and those of the container that answer there, as `--publish` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// What is carried.
    pub protocol: Protocol,
    /// The address of this machine; all of them, where there is none.
    address: Option<IpAddr>,
    outside: Ports,
    inside: Ports,
}

/// What is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// Ports in a row, from the first to the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    first: u16,
    last: u16,
}

const FORM: &str = "[ADDRESS:]HOSTPORT[:PORT][/tcp|/udp] is expected, where each may be a range as 8000-8010";

impl FromStr for Published {
    type Err = String;

    fn from_str(text: &str) -> Result<Published, String> {
        let (rest, protocol) = match text.rsplit_once('/') {
            None => (text, Protocol::Tcp),
            Some((rest, "tcp")) => (rest, Protocol::Tcp),
            Some((rest, "udp")) => (rest, Protocol::Udp),
            Some((_, other)) => return Err(format!("'{other}' is neither tcp nor udp; {FORM}")),
        };
        let (address, ports) = split_address(rest)?;
        let (outside, inside) = ports.split_once(':').unwrap_or((ports, ports));
        let (outside, inside) = (outside.parse::<Ports>()?, inside.parse::<Ports>()?);
        if outside.last - outside.first != inside.last - inside.first {
            return Err(format!("{outside} and {inside} are not equally many ports"));
        }
        Ok(Published { protocol, address, outside, inside })
    }
}

impl Published {
    /// Free ports of this machine that lead to those that an image exposes: `80`, `53/udp`, `8000-8001/tcp`.
    ///
    /// # Errors
    /// Where the text is no port, or no port of this machine is free.
    pub(crate) fn anywhere(exposed: &str) -> Result<Vec<Published>, String> {
        let wanted = exposed.parse::<Published>()?;
        let one = |port| {
            let port = Ports { first: port, last: port };
            let free = free(wanted.protocol).map_err(|error| format!("no port is free: {error}"))?;
            Ok(Published { outside: Ports { first: free, last: free }, inside: port, ..wanted })
        };
        (wanted.inside.first..=wanted.inside.last).map(one).collect()
    }
}

/// A port of this machine that nobody uses at this moment.
fn free(protocol: Protocol) -> std::io::Result<u16> {
    let any = (Ipv4Addr::UNSPECIFIED, 0);
    match protocol {
        Protocol::Tcp => TcpListener::bind(any)?.local_addr(),
        Protocol::Udp => UdpSocket::bind(any)?.local_addr(),
    }
    .map(|address| address.port())
}

/// An address of IPv6 stands in brackets, for it has colons itself.
fn split_address(text: &str) -> Result<(Option<IpAddr>, &str), String> {
    let (address, ports) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").ok_or(FORM)?,
        None if text.contains('.') || text.matches(':').count() > 1 => text.split_once(':').ok_or(FORM)?,
        None => return Ok((None, text)),
    };
    let address = address.parse().map_err(|_| format!("'{address}' is no address; {FORM}"))?;
    Ok((Some(address), ports))
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Ports, String> {
        let port = |text: &str| match text.parse() {
            Ok(port @ 1..) if !text.starts_with('+') => Ok(port),
            _ => Err(format!("'{text}' is no port; {FORM}")),
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(format!("{first}-{last} ends before it begins"));
        }
        Ok(Ports { first, last })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(formatter, "{}", self.first),
            false => write!(formatter, "{}-{}", self.first, self.last),
        }
    }
}

/// As pasta(1) takes it for `--tcp-ports` and `--udp-ports`.
impl fmt::Display for Published {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.map_or(Ok(()), |address| write!(formatter, "{address}/"))?;
        write!(formatter, "{}:{}", self.outside, self.inside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_published_as_with_docker() {
        for (text, protocol, expected) in [
            ("8080:80", Protocol::Tcp, "8080:80"),
            ("53:5353/udp", Protocol::Udp, "53:5353"),
            ("80/tcp", Protocol::Tcp, "80:80"),
            ("127.0.0.1:8080:80", Protocol::Tcp, "127.0.0.1/8080:80"),
            ("127.0.0.1:8080", Protocol::Tcp, "127.0.0.1/8080:8080"),
            ("[::1]:8080:80/udp", Protocol::Udp, "::1/8080:80"),
            ("8000-8010:9000-9010", Protocol::Tcp, "8000-8010:9000-9010"),
            ("8000-8010", Protocol::Tcp, "8000-8010:8000-8010"),
            ("65535:1", Protocol::Tcp, "65535:1"),
        ] {
            let published: Published = text.parse().unwrap();
            assert_eq!((published.protocol, &*published.to_string()), (protocol, expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in [
            "",
            ":",
            "0:80",
            "80:0",
            "65536",
            "+80",
            "a:80",
            "80:80:80",
            "127.0.0.1::80",
            "127.0.0:80:80",
            "[::1]8080",
            "::1:8080",
            "80/sctp",
            "80/",
            "10-9",
            "8000-8010:80",
            "8000-8010:9000-9011",
            "80,81",
            "80:~80",
            "localhost:80:80",
            "127.0.0.1%eth0:80",
        ] {
            assert!(text.parse::<Published>().is_err(), "{text}");
        }
    }
}

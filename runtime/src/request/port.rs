//! Published ports: `[IP:]HOST:GUEST[/tcp|/udp]`.

use std::net::IpAddr;
use std::str::FromStr;

/// Why a text is no published port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    #[error("--publish {0}: give [IP:]HOST:GUEST, with /udp if it is not TCP's")]
    Syntax(String),
    #[error(
        "--publish {0}: only with --network passt; another network is published by who makes it"
    )]
    NoNetwork(String),
}

/// A port of the host's that is the container's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// The host's address; any of them if not given.
    pub address: Option<IpAddr>,
    /// The host's.
    pub host: u16,
    /// The container's.
    pub guest: u16,
    /// UDP's, not TCP's.
    pub udp: bool,
}

impl FromStr for Port {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        parse(text).ok_or_else(|| PortError::Syntax(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Port> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let udp = match protocol {
        "tcp" => false,
        "udp" => true,
        _ => return None,
    };
    let (rest, guest) = ports.rsplit_once(':')?;
    let (address, host) = match rest.rsplit_once(':') {
        Some((address, host)) => {
            let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
            (Some(bare.unwrap_or(address).parse().ok()?), host)
        }
        None => (None, rest),
    };
    Some(Port { address, host: number(host)?, guest: number(guest)?, udp })
}

fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_as_they_are_typed() {
        let plain = Port { address: None, host: 8080, guest: 80, udp: false };
        assert_eq!("8080:80".parse(), Ok(plain));
        assert_eq!("8080:80/udp".parse(), Ok(Port { udp: true, ..plain }));
        let at = |text: &str| text.parse::<Port>().unwrap().address.unwrap().to_string();
        assert_eq!(at("127.0.0.1:8080:80/tcp"), "127.0.0.1");
        assert_eq!(at("[::1]:8080:80"), "::1");
        for bad in
            ["", "80", "0:80", "80:0", "1:2/sctp", "x:1:2", "65536:1", "1:2:3", "a,b:1", ":1:2"]
        {
            assert_eq!(bad.parse::<Port>(), Err(PortError::Syntax(bad.to_owned())), "{bad}");
        }
    }
}

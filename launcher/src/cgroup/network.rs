//! The class of packets, by which tc(8) gives bandwidth.

use std::str::FromStr;

use super::detect::Controller;
use super::limits::Limits;
use super::setting::{Place, Setting};

/// A class as tc(8) writes it: two hexadecimal numbers of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkClass(u32);

impl FromStr for NetworkClass {
    type Err = String;

    fn from_str(text: &str) -> Result<NetworkClass, String> {
        let number = |text: &str| {
            let is_hexadecimal = text.bytes().all(|byte| byte.is_ascii_hexdigit());
            u16::from_str_radix(text, 16).ok().filter(|_| is_hexadecimal)
        };
        let class = text.split_once(':').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
        let (major, minor) = class.ok_or("it is not a class like 10:1, in hexadecimal")?;
        Ok(NetworkClass(u32::from(major) << 16 | u32::from(minor)))
    }
}

/// v2 has nothing of the kind.
pub(crate) fn settings(limits: &Limits) -> Vec<Setting> {
    let setting = |NetworkClass(class): NetworkClass| {
        let files = vec![("net_cls.classid", class.to_string())];
        Setting::new("--net-class", Controller::NetworkClass, Place::Container, files)
    };
    limits.net_class.map(setting).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_hexadecimal() {
        for (text, expected) in
            [("10:1", 0x10_0001_u32), ("ffff:ffff", 0xffff_ffff), ("1:a", 0x1_000a), ("1:0", 0x1_0000)]
        {
            let limits = Limits { net_class: Some(text.parse().unwrap()), ..Limits::default() };
            assert_eq!(settings(&limits)[0].files, [("net_cls.classid", expected.to_string())], "{text}");
        }
        for text in ["", "10", ":", "1:", ":1", "g:1", "10000:1", "1:1:1", "+1:1", "-1:1"] {
            assert!(text.parse::<NetworkClass>().is_err(), "{text:?}");
        }
    }
}

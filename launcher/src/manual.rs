//! The manual pages say what the commands say.

use clap::Command;

use crate::completions::whole;
use crate::image;

/// A page without the escapes that stand for plain characters.
fn plain(page: &str) -> String {
    page.replace("\\-", "-").replace("\\e", "\\")
}

/// The text below a heading that begins like this, up to the next heading.
fn section<'a>(page: &'a str, heading: &str) -> Option<&'a str> {
    let heading = format!("\n.SS {heading}");
    let begins = |at: &usize| page[at + heading.len()..].starts_with(['\n', ' ', ',']);
    let (start, _) = page.match_indices(&heading).find(|(at, _)| begins(at))?;
    let rest = &page[start + 1..];
    let ends = ["\n.SS ", "\n.SH "].iter().filter_map(|next| rest.find(next)).min();
    Some(&rest[..ends.unwrap_or(rest.len())])
}

/// Checks that every option is named in a text, with its short form.
fn check_options(command: &Command, text: &str, elsewhere: &str) {
    for option in command.get_opts().filter(|option| !option.is_hide_set()) {
        let long = option.get_long().map(|long| format!("--{long}"));
        let short = option.get_short().map(|short| format!("-{short}"));
        for word in long.into_iter().chain(short).filter(|word| !["--help", "--version"].contains(&&**word)) {
            let named = |text: &str| text.split([' ', ',', '"', '\n', '=', '[', ']']).any(|said| said == word);
            let limits = elsewhere.contains(&word) && command.get_name() == "update";
            assert!(named(text) || limits, "the manual does not name {word} of {}", command.get_name());
        }
    }
}

#[test]
fn every_command_and_option_is_in_the_manual() {
    let page = plain(include_str!("../../man/rlaunch.1"));
    let images = plain(include_str!("../../man/rlaunch-image.1"));
    let whole = whole();
    check_options(&whole, &page, "");
    for command in whole.get_subcommands().filter(|command| !["run", image::COMMIT].contains(&command.get_name())) {
        let name = command.get_name();
        let text = section(&page, &format!("rlaunch {name}")).unwrap_or_else(|| panic!("no section on rlaunch {name}"));
        check_options(command, text, &page);
        for below in command.get_subcommands() {
            let name = below.get_name();
            let text = section(&images, name).unwrap_or_else(|| panic!("no section on rlaunch image {name}"));
            check_options(below, text, "");
        }
    }
}

#[test]
fn the_version_is_the_same() {
    let version = env!("CARGO_PKG_VERSION");
    for page in [include_str!("../../man/rlaunch.1"), include_str!("../../man/rlaunch-image.1")] {
        assert!(page.contains(&format!("\"rlaunch {version}\"")), "not of {version}");
    }
}

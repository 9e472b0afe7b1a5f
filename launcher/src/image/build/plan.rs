//! Which stages a Dockerfile has, what each is made of, and which of them are needed.

use std::collections::BTreeSet;

use super::expand::Expansion;
use super::instruction::{Copied, Instruction, What};
use super::lines::Wrong;
use crate::image::manifest::architecture;

/// What `--build-arg` says.
pub(super) type BuildArguments = Vec<(String, String)>;

/// All stages.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) stages: Vec<Planned>,
    /// What was said before the first stage, and of the platform; the last of a name counts.
    pub(super) globals: Vec<(String, Option<String>)>,
    /// What is built, in order; the last one is the image.
    pub(super) wanted: Vec<usize>,
}

/// One stage.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) line: usize,
    pub(super) text: String,
    pub(super) name: Option<String>,
    pub(super) base: Base,
    pub(super) instructions: Vec<Instruction>,
}

/// Where files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Base {
    Scratch,
    Stage(usize),
    Image(String),
}

/// Finds the stages, and those that are needed for one: the last, where none is named.
///
/// # Errors
/// Where there are none, or one is meant that is not there.
pub(super) fn plan(
    instructions: Vec<Instruction>,
    escape: char,
    arguments: &BuildArguments,
    target: Option<&str>,
) -> Result<Plan, Wrong> {
    let mut plan = Plan { stages: Vec::new(), globals: of_the_platform(), wanted: Vec::new() };
    for instruction in instructions {
        let Instruction { line, text, what } = instruction;
        match what {
            What::From { image, platform, name } => {
                let wrong = |why| Wrong { line, why };
                let base = plan.base(&image, escape).map_err(wrong)?;
                if let Some(platform) = platform {
                    plan.check_platform(&platform, escape).map_err(wrong)?;
                }
                plan.stages.push(Planned { line, text, name, base, instructions: Vec::new() });
            }
            What::Arg(all) if plan.stages.is_empty() => {
                for (name, default) in all {
                    let value = plan.global(&name, default.as_deref(), escape, arguments);
                    plan.globals.push((name, value.map_err(|why| Wrong { line, why })?));
                }
            }
            what => match plan.stages.last_mut() {
                Some(stage) => stage.instructions.push(Instruction { line, text, what }),
                None => return Err(Wrong { line, why: "FROM comes first".into() }),
            },
        }
    }
    plan.want(target)?;
    Ok(plan)
}

/// The last value of a name in a list.
pub(super) fn last(list: &[(String, Option<String>)], name: &str) -> Option<String> {
    list.iter().rev().find(|(known, _)| known == name).and_then(|(_, value)| value.clone())
}

/// What docker says of the machine; see its reference, "Automatic platform ARGs".
fn of_the_platform() -> Vec<(String, Option<String>)> {
    let of = |what: &str| {
        let values = [("PLATFORM", platform()), ("OS", "linux".to_owned()), ("ARCH", architecture().to_owned())];
        values.map(|(name, value)| (format!("{what}{name}"), Some(value)))
    };
    ["TARGET", "BUILD"].iter().flat_map(|what| of(what)).collect()
}

fn platform() -> String {
    format!("linux/{}", architecture())
}

impl Plan {
    fn expanded(&self, text: &str, escape: char) -> Result<String, String> {
        Expansion { escape, lookup: &|name| last(&self.globals, name) }.word(text)
    }

    fn global(
        &self,
        name: &str,
        default: Option<&str>,
        escape: char,
        arguments: &BuildArguments,
    ) -> Result<Option<String>, String> {
        match arguments.iter().rev().find(|(given, _)| given == name) {
            Some((_, value)) => Ok(Some(value.clone())),
            None => default.map(|default| self.expanded(default, escape)).transpose(),
        }
    }

    fn base(&self, image: &str, escape: char) -> Result<Base, String> {
        let name = self.expanded(image, escape)?;
        if name.is_empty() {
            return Err(format!("{image} comes to nothing"));
        }
        Ok(match self.stage(&name, self.stages.len()) {
            _ if name == "scratch" => Base::Scratch,
            Some(stage) => Base::Stage(stage),
            None => Base::Image(name),
        })
    }

    /// An earlier stage of this name; of several, the last one.
    fn stage(&self, name: &str, before: usize) -> Option<usize> {
        let is_it = |stage: &Planned| stage.name.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(name));
        self.stages.iter().take(before).rposition(is_it)
    }

    fn check_platform(&self, text: &str, escape: char) -> Result<(), String> {
        let wanted = self.expanded(text, escape)?;
        let own = platform();
        match wanted.is_empty() || wanted == own || wanted.starts_with(&format!("{own}/")) {
            true => Ok(()),
            false => Err(format!("images for {} are not built here, only for {own}", wanted.escape_debug())),
        }
    }

    /// Where COPY in a stage takes files from.
    ///
    /// # Errors
    /// Where that is a stage that comes later.
    pub(super) fn source(&self, from: &str, stage: usize) -> Result<Base, String> {
        if let Some(earlier) = self.stage(from, stage) {
            return Ok(Base::Stage(earlier));
        }
        match from.parse::<usize>() {
            Ok(number) if number < stage => Ok(Base::Stage(number)),
            Ok(number) => Err(format!("there is no stage {number} before this one")),
            Err(_) => Ok(Base::Image(from.to_owned())),
        }
    }

    /// Finds what is needed for one stage, and that it is there.
    fn want(&mut self, target: Option<&str>) -> Result<(), Wrong> {
        let last = self.stages.len().checked_sub(1).ok_or(Wrong { line: 1, why: "there is no FROM".into() })?;
        let target = match target {
            None => last,
            Some(name) => {
                let number = name.parse::<usize>().ok().filter(|number| *number <= last);
                let missing = || Wrong { line: 1, why: format!("there is no stage {}", name.escape_debug()) };
                self.stage(name, last + 1).or(number).ok_or_else(missing)?
            }
        };
        let mut wanted = BTreeSet::from([target]);
        // Stages need earlier ones only.
        for stage in (0..=target).rev() {
            if wanted.contains(&stage) {
                wanted.extend(self.needs(stage)?);
            }
        }
        self.wanted = wanted.into_iter().collect();
        Ok(())
    }

    fn needs(&self, stage: usize) -> Result<Vec<usize>, Wrong> {
        let Some(planned) = self.stages.get(stage) else { return Ok(Vec::new()) };
        let mut sources = vec![planned.base.clone()];
        for instruction in &planned.instructions {
            if let What::Copy(Copied { from: Some(from), .. }) = &instruction.what {
                sources.push(self.source(from, stage).map_err(|why| Wrong { line: instruction.line, why })?);
            }
        }
        let stage = |source| if let Base::Stage(stage) = source { Some(stage) } else { None };
        Ok(sources.into_iter().filter_map(stage).collect())
    }

    /// How many steps all that is built has.
    pub(super) fn steps(&self) -> usize {
        let of = |stage: &usize| self.stages.get(*stage).map_or(0, |stage| stage.instructions.len() + 1);
        self.wanted.iter().map(of).sum()
    }

    /// Whether some stage, or what comes before them, has an argument of this name.
    pub(super) fn declares(&self, name: &str) -> bool {
        let is_in = |instruction: &Instruction| match &instruction.what {
            What::Arg(all) => all.iter().any(|(known, _)| known == name),
            _ => false,
        };
        self.globals.iter().any(|(known, _)| known == name)
            || self.stages.iter().flat_map(|stage| &stage.instructions).any(is_in)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::build::{instruction, lines};

    fn planned(text: &str, target: Option<&str>) -> Result<Plan, Wrong> {
        let lines = lines::read(text)?;
        let arguments = vec![("GIVEN".to_owned(), "given".to_owned())];
        plan(instruction::parse(&lines)?, lines.escape, &arguments, target)
    }

    const STAGES: &str = "ARG TAG=1\nARG GIVEN=x\nFROM base:$TAG AS one\nRUN a\nFROM scratch AS other\nFROM ${GIVEN} as Two\n\
        COPY --from=ONE /a /a\nCOPY --from=image:1 /b /b\nFROM two\nCOPY --from=0 /c /c\n";

    #[test]
    fn only_what_is_needed_is_built() {
        let plan = planned(STAGES, None).unwrap();
        let bases: Vec<_> = plan.stages.iter().map(|stage| stage.base.clone()).collect();
        let image = |name: &str| Base::Image(name.into());
        assert_eq!(bases, [image("base:1"), Base::Scratch, image("given"), Base::Stage(2)]);
        assert_eq!((plan.wanted.clone(), plan.steps()), (vec![0, 2, 3], 7));
        assert_eq!(plan.source("image:1", 2), Ok(image("image:1")));
        assert!(plan.declares("GIVEN") && !plan.declares("NEVER"));
        for (target, wanted) in [("ONE", vec![0]), ("other", vec![1]), ("2", vec![0, 2])] {
            assert_eq!(planned(STAGES, Some(target)).unwrap().wanted, wanted, "{target}");
        }
    }

    /// Pieces of which Dockerfiles are made, and what only looks like them.
    const PIECES: [&str; 44] = [
        "FROM",
        "from",
        " AS ",
        "scratch",
        "base:1",
        "RUN",
        "COPY",
        "ADD",
        "ENV",
        "ARG",
        "LABEL",
        "CMD",
        "ENTRYPOINT",
        "SHELL",
        "HEALTHCHECK",
        "ONBUILD",
        "EXPOSE",
        " ",
        "\t",
        "\n",
        "\r\n",
        "\\\n",
        "\\",
        "`",
        "#",
        "# escape=`\n",
        "\"",
        "'",
        "$",
        "${",
        "}",
        ":-",
        ":+",
        "=",
        "A",
        "[",
        "]",
        ",",
        "<<EOF",
        "<<-'X'",
        "EOF",
        "--from=0",
        "--x",
        "ü\u{0}",
    ];

    proptest::proptest! {
        #[test]
        fn whatever_a_dockerfile_says_it_is_read_or_refused(
            pieces in proptest::collection::vec(0..PIECES.len(), 0..60),
            noise in proptest::collection::vec(proptest::prelude::any::<char>(), 0..4),
        ) {
            let begin = if pieces.len() % 2 == 0 { "FROM base:1\n" } else { "" };
            let text: String = pieces.iter().map(|at| PIECES[*at]).collect();
            let text = format!("{begin}{text}{}", noise.into_iter().collect::<String>());
            if let Ok(plan) = planned(&text, None) {
                proptest::prop_assert!(plan.steps() > 0 && !plan.wanted.is_empty());
            }
            let expansion = Expansion { escape: '\\', lookup: &|name| Some(name.to_owned()) };
            drop((expansion.word(&text), expansion.words(&text)));
            if let Ok(ignored) = super::super::Ignored::read(text.as_bytes()) {
                ignored.matches(b"a/b/c");
            }
        }
    }

    #[test]
    fn what_is_not_there_is_told_with_its_line() {
        for (text, line) in [
            ("", 1),
            ("# nothing\n", 1),
            ("RUN x\nFROM y\n", 1),
            ("FROM x\nCOPY --from=0 a b\n", 2),
            ("FROM x\nCOPY --from=7 a b\n", 2),
            ("FROM $NONE\n", 1),
            ("ARG A=${\nFROM x\n", 1),
            ("\nFROM --platform=linux/s390x x\n", 2),
        ] {
            assert_eq!(planned(text, None).unwrap_err().line, line, "{text}");
        }
        assert!(planned("FROM x\n", Some("none")).is_err());
        assert!(planned("FROM --platform=$TARGETPLATFORM x\n", None).is_ok());
    }
}

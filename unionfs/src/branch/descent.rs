//! Going down a tree with few open directories, however deep somebody made it.

use crate::union::{Name, NameBuf};

/// So many directories are held open, and the root.
const HELD: usize = 32;

/// The directories from the root of a tree to where a walk is. Those far above are closed, and
/// found again by their names when the walk comes back to them.
#[derive(Debug)]
pub(crate) struct Descent<D> {
    root: D,
    steps: Vec<Step<D>>,
}

#[derive(Debug)]
struct Step<D> {
    name: NameBuf,
    dir: Option<D>,
}

impl<D> Descent<D> {
    /// At the root.
    pub(crate) fn new(root: D) -> Descent<D> {
        Descent { root, steps: Vec::new() }
    }

    /// Goes down to a directory of that name.
    pub(crate) fn enter(&mut self, name: Name<'_>, dir: D) {
        self.steps.push(Step { name: name.to_owned(), dir: Some(dir) });
        if let Some(far) = self.steps.len().checked_sub(HELD + 1) {
            self.steps[far].dir = None;
        }
    }

    /// Goes up to the directory above; false at the root.
    pub(crate) fn leave(&mut self) -> bool {
        self.steps.pop().is_some()
    }

    /// Where it is.
    ///
    /// # Errors
    /// Those of opening a directory by its name, where it was closed.
    pub(crate) fn here<E>(&mut self, open: impl Fn(&D, Name<'_>) -> Result<D, E>) -> Result<&D, E> {
        let Descent { root, steps } = self;
        if steps.last().is_some_and(|step| step.dir.is_none()) {
            reopen(root, steps, open)?;
        }
        Ok(steps.last().and_then(|step| step.dir.as_ref()).unwrap_or(root))
    }
}

/// Opens the last of the directories anew, from the root down.
fn reopen<D, E>(root: &D, steps: &mut [Step<D>], open: impl Fn(&D, Name<'_>) -> Result<D, E>) -> Result<(), E> {
    let from = steps.len().saturating_sub(HELD);
    let mut passed: Option<D> = None;
    for step in &steps[..from] {
        passed = Some(open(passed.as_ref().unwrap_or(root), step.name.as_name())?);
    }
    let mut above = passed.as_ref().unwrap_or(root);
    for step in &mut steps[from..] {
        let dir = open(above, step.name.as_name())?;
        above = step.dir.insert(dir);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that is the path to it.
    fn open(above: &String, name: Name<'_>) -> Result<String, ()> {
        Ok(format!("{above}/{}", String::from_utf8_lossy(name.as_bytes())))
    }

    #[test]
    fn the_way_back_is_the_way_down() {
        let mut descent = Descent::new(String::new());
        let mut paths = vec![String::new()];
        for depth in 0..5 * HELD {
            let name = depth.to_string();
            let name = Name::new(name.as_bytes()).expect("a name");
            let dir = open(descent.here(open).expect("it opens"), name).expect("it opens");
            paths.push(dir.clone());
            descent.enter(name, dir);
            let held = descent.steps.iter().filter(|step| step.dir.is_some()).count();
            assert!(held <= HELD, "{held}");
        }
        while let Some(path) = paths.pop() {
            assert_eq!(descent.here(open), Ok(&path));
            assert!(descent.steps.iter().filter(|step| step.dir.is_some()).count() <= HELD);
            assert_eq!(descent.leave(), !paths.is_empty());
        }
    }
}

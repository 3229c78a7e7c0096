//! The environment: read once, handed on as a map, so that tests can bring their own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::config::Origin;

/// The environment variables of this process, as they were at its start. Empty counts as unset.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, String>);

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Environment({} variables)", self.0.len()) // may hold secrets
    }
}

impl Environment {
    /// The process's own. Variables that are not UTF-8 are left out.
    #[must_use]
    pub fn of_process() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self(std::env::vars_os().filter_map(text).collect())
    }

    /// One made up for a test.
    #[must_use]
    pub fn from_pairs(pairs: &[(&str, &str)]) -> Self {
        Self(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    /// The value of a variable that is set and not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The first of several variables that is set, and which it was.
    #[must_use]
    pub fn first(&self, names: &[&'static str]) -> Option<(String, Origin)> {
        names
            .iter()
            .find_map(|name| self.get(name).map(|value| (value.to_owned(), Origin::Environment(name))))
    }

    /// A variable that holds an absolute path; the XDG rules have others ignored.
    #[must_use]
    pub fn absolute_path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }
}

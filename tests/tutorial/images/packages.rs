//! Debian packages from where the machine's apt gets them, without installing anything and without root.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An apt of our own below a directory: the machine's sources, but nothing installed.
pub struct Apt {
    root: PathBuf,
}

/// A package in the version that apt chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Apt {
    /// Prepares it and asks the sources what there is.
    pub fn new(root: &Path) -> Self {
        for directory in ["lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(root.join(directory)).expect("the cache is ours");
        }
        // Only what Debian offers, whatever else the machine's sources list.
        fs::write(root.join("preferences"), "Package: *\nPin: release o=Debian\nPin-Priority: 990\n").expect("written");
        let apt = Self { root: root.to_owned() };
        apt.set_installed(&[], &[]);
        apt.get(&["update"]);
        apt
    }

    /// What `packages` need beside what is `below` already; `without` are dependencies that nobody will miss.
    pub fn closure(&self, packages: &[&str], below: &[Package], without: &[&str]) -> Vec<Package> {
        self.set_installed(below, without);
        let wanted: Vec<&str> = ["--simulate", "install"].iter().chain(packages).copied().collect();
        self.get(&wanted).lines().filter_map(chosen).collect()
    }

    /// Fetches packages; the files are in their order.
    pub fn fetch(&self, packages: &[Package]) -> Vec<PathBuf> {
        let file = |p: &Package| {
            let beginning = format!("{}_{}_", p.name, p.version.replace(':', "%3a"));
            fs::read_dir(self.root.join("debs"))
                .expect("it was made")
                .flatten()
                .find(|entry| entry.file_name().to_string_lossy().starts_with(&beginning))
                .map(|entry| entry.path())
        };
        let missing: BTreeSet<String> =
            packages.iter().filter(|p| file(p).is_none()).map(|p| format!("{}={}", p.name, p.version)).collect();
        if !missing.is_empty() {
            let wanted: Vec<&str> = ["download"].into_iter().chain(missing.iter().map(String::as_str)).collect();
            self.get(&wanted);
        }
        packages.iter().map(|p| file(p).unwrap_or_else(|| panic!("apt fetched no file of {p:?}"))).collect()
    }

    /// apt's picture of what is installed.
    fn set_installed(&self, below: &[Package], without: &[&str]) {
        let entry = |name: &str, version: &str| {
            format!(
                "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nMulti-Arch: allowed\n\
                 Maintainer: tests\nVersion: {version}\nDescription: there\n\n"
            )
        };
        let there = below.iter().map(|p| entry(&p.name, &p.version));
        let is_below = |name: &str| below.iter().any(|p| p.name == name);
        let missed = without.iter().filter(|name| !is_below(name)).map(|name| entry(name, "99:99"));
        fs::write(self.root.join("status"), there.chain(missed).collect::<String>()).expect("written");
    }

    fn get(&self, arguments: &[&str]) -> String {
        let root = self.root.display();
        let settings = [
            format!("Dir::State={root}"),
            format!("Dir::State::lists={root}/lists"),
            format!("Dir::State::status={root}/status"),
            format!("Dir::Cache={root}/cache"),
            format!("Dir::Etc::Preferences={root}/preferences"),
            "APT::Install-Recommends=false".to_owned(),
            "APT::Sandbox::User=".to_owned(),
            "Debug::NoLocking=true".to_owned(),
        ];
        let mut command = Command::new("apt-get");
        command.args(["-q", "--yes"]).args(settings.iter().flat_map(|setting| ["-o", setting])).args(arguments);
        let output = command.current_dir(self.root.join("debs")).output().expect("this is Debian");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "apt-get {arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }
}

/// The package of a line such as `Inst curl (7.88.1-10 Debian:12/oldstable [amd64])`.
fn chosen(line: &str) -> Option<Package> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let version = rest.split_once('(')?.1.split_whitespace().next()?;
    Some(Package { name: name.to_owned(), version: version.to_owned() })
}

#[test]
fn apts_choice_is_read() {
    let package = chosen("Inst libssl3 (3.0.17-1~deb12u2 Debian-Security:12/oldstable-security [amd64])").expect("one");
    assert_eq!(package, Package { name: "libssl3".into(), version: "3.0.17-1~deb12u2".into() });
    assert_eq!(chosen("Inst a [1] (2:3 Debian:12/x [all])").expect("one").version, "2:3");
    assert_eq!(chosen("Conf libssl3 (3)"), None);
}

//! What ops/*.md tell operators to type and to look up: settings that exist, headings that are there, commands that do what the
//! guide says of them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::serve::MIMID;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Each document with its name, as ops/x.md.
fn documents() -> Vec<(String, String)> {
    let mut names: Vec<PathBuf> =
        fs::read_dir(root().join("ops")).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|name| name.extension().is_some_and(|it| it == "md"));
    names.extend(["README.md", "ARCHITECTURE.md"].map(|name| root().join(name)));
    names.sort();
    assert!(names.len() > 8);
    let named = |path: PathBuf| {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        (name, read(&path))
    };
    names.into_iter().map(named).collect()
}

/// Sections, and section.key, of config/single.toml: a test of the configuration says that it has all of them.
fn settings() -> (BTreeSet<String>, BTreeSet<String>) {
    let text = read(&root().join("config/single.toml"));
    let (mut sections, mut settings, mut section) = (BTreeSet::new(), BTreeSet::new(), None);
    for line in text.lines() {
        let line = line.strip_prefix("#: ").unwrap_or(line);
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            sections.insert(name.to_owned());
            section = Some(name);
        } else if let Some((key, _)) = line.split_once(" = ")
            && let Some(section) = section
            && key.chars().all(|c| c.is_ascii_lowercase() || c == '_')
        {
            settings.insert(format!("{section}.{key}"));
        }
    }
    assert!(sections.len() > 8 && settings.len() > 80);
    (sections, settings)
}

/// What stands between backticks, outside of blocks.
fn quoted(text: &str) -> Vec<String> {
    let mut outside = String::new();
    let mut in_block = false;
    for line in text.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            outside += line;
            // a command may go on in the next line
            outside.push(' ');
        }
    }
    outside.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_setting_that_operators_are_told_of_is_one() {
    let (sections, settings) = settings();
    let mut seen = 0;
    for (name, text) in documents() {
        for quoted in quoted(&text) {
            if let Some(section) = quoted.strip_prefix('[').and_then(|it| it.strip_suffix(']'))
                // Cargo's
                && !["", "lints"].contains(&section)
                && section.chars().all(|c| c.is_ascii_lowercase())
            {
                assert!(sections.contains(section), "{name}: there is no {quoted}");
            }
            let setting = quoted.split([' ', '=']).next().unwrap();
            let Some((section, key)) = setting.split_once('.') else { continue };
            let is_name = key.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '.');
            let is_file = ["json", "md", "rs", "toml"].contains(&key);
            if sections.contains(section) && is_name && !is_file {
                assert!(settings.contains(setting), "{name}: there is no {setting}");
                seen += 1;
            }
        }
    }
    assert!(seen > 60, "{seen}");
}

/// As GitHub makes anchors of headings.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let headings = |text: &str| -> BTreeSet<String> {
        let headings = text.lines().filter(|line| line.starts_with('#'));
        headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
    };
    let mut seen = 0;
    for (name, text) in documents() {
        let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        for (link, _) in links.filter(|(link, _)| !link.contains("://")) {
            let (file, part) = link.split_once('#').unwrap_or((link, ""));
            let here = root().join(&name);
            let file = if file.is_empty() { here } else { here.with_file_name("").join(file) };
            assert!(file.exists(), "{name}: {link}");
            let there = part.is_empty() || headings(&read(&file)).contains(part);
            assert!(there, "{name}: {link} is no heading");
            seen += 1;
        }
        // README, "Backups"
        let operators = headings(&read(&root().join("ops/README.md")));
        for rest in text.split("README, \"").skip(1) {
            let (heading, _) = rest.split_once('"').unwrap();
            let at_home = name.starts_with("ops/") && operators.contains(&anchor(heading));
            assert!(at_home, "{name}: README has no {heading:?}");
        }
    }
    assert!(seen > 30, "{seen}");
}

fn guide() -> String {
    read(&root().join("ops/install.md"))
}

/// The guide's only line that contains `text`.
fn command(text: &str) -> String {
    let guide = guide();
    let found: Vec<&str> = guide.lines().filter(|line| line.contains(text)).collect();
    assert_eq!(found.len(), 1, "{text}: {found:?}");
    found[0].trim_start_matches(['#', '$', ' ']).to_owned()
}

fn shell(command: &str, set: &[(&str, &Path)]) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-ec", command]).current_dir(root()).envs(set.iter().copied()).output().unwrap()
}

#[test]
fn the_guide_installs_what_the_unit_says_to_read() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("doc/mimid");
    let place = "/usr/local/share/doc/mimid";
    let install = command(place).replace(place, to.to_str().unwrap());
    let done = shell(&install, &[]);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.is_empty(), "{said}");
    let unit = read(&root().join("ops/mimid.service"));
    assert!(unit.contains(&format!("\nDocumentation=file://{place}/README.md\n")));
    // the operator's, not that of the project
    let readme = read(&to.join("README.md"));
    let named =
        ["When it hangs"].iter().all(|heading| readme.contains(&format!("\n## {heading}\n")));
    assert!(named && unit.contains("\"When it hangs\" in README.md"));
    assert!(to.join("runbook.md").exists());
}

#[test]
fn the_guides_hook_takes_the_certificate_of_this_provider_alone() {
    let guide = guide();
    let (_, rest) = guide.split_once("<<'HOOK'\n").unwrap();
    let (hook, _) = rest.split_once("\nHOOK\n").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (live, to) = (folder.path().join("live"), folder.path().join("mimid"));
    fs::create_dir(&to).unwrap();
    for name in ["mimi.a.example", "www.a.example"] {
        fs::create_dir_all(live.join(name)).unwrap();
        for file in ["fullchain.pem", "privkey.pem"] {
            fs::write(live.join(name).join(file), name).unwrap();
        }
    }
    // who tests need not be root, and reloads nothing
    let hook = hook
        .replace("/etc/letsencrypt/live", live.to_str().unwrap())
        .replace("/etc/mimid", to.to_str().unwrap())
        .replace("-o mimid -g mimid ", "")
        .replace("systemctl", ": systemctl");
    let kept = || fs::read_dir(&to).unwrap().count();
    for (name, files) in [("www.a.example", 0), ("mimi.a.example", 2), ("www.a.example", 2)] {
        let done = shell(&hook, &[("RENEWED_LINEAGE", &live.join(name))]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(kept(), files, "{name}");
    }
    assert_eq!(read(&to.join("key.pem")), "mimi.a.example");
}

#[test]
fn the_guides_configuration_is_one_on_a_machine_and_in_a_container() {
    let guide = guide();
    let (_, rest) = guide.split_once("```toml\n").unwrap();
    let (text, container) = rest.split_once("```").unwrap();
    let text = text.replace('…', &"0123456789abcdef".repeat(4));
    let (on_machine, inside) = ("listen = \"0.0.0.0:443\"", "listen = \"0.0.0.0:7443\"");
    let ops = "listen = \"0.0.0.0:9443\"";
    for setting in [format!("`federation.{inside}`"), format!("`ops.{ops}`")] {
        assert!(container.contains(&setting), "{setting}");
    }
    let in_container = text.replace(on_machine, inside) + &format!("\n[ops]\n{ops}\n");
    assert_ne!(in_container, text);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mimid.toml");
    for text in [text, in_container] {
        // files that are not there are another matter
        let text = text.replace("/etc/mimid", "/nowhere");
        fs::write(&file, &text).unwrap();
        let mut check = Command::new(MIMID);
        let done = check.args(["check-config", "--config"]).arg(&file).output().unwrap();
        let (shown, said) = (done.stdout, String::from_utf8_lossy(&done.stderr).into_owned());
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains("domain_name = \"mimi.a.example\""), "{shown}{said}");
        assert!(said.starts_with("client.certificate, client.key: "), "{said}");
    }
}

//! The house rules that a compiler does not check: who may import whom, what the rules may not know, where panics
//! may stand, how a file begins and how long it may get.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each module and what it may import of ours. The order is the one of `src/lib.rs`.
const LAYERS: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("crypto", &["wire"]),
    ("policy", &["wire", "crypto"]),
    ("rate", &["wire"]),
    ("migration", &["wire", "crypto"]),
    ("group", RULES),
    ("queue", RULES),
    ("key_package", &["wire", "crypto", "policy", "store", "queue"]),
    ("account", RULES),
    (
        "store",
        &["wire", "crypto", "policy", "migration", "group", "queue", "key_package", "account"],
    ),
    ("metrics", &["wire"]),
    (
        "federation",
        &[
            "wire",
            "crypto",
            "policy",
            "group",
            "queue",
            "key_package",
            "account",
            "store",
            "metrics",
        ],
    ),
    ("actors", ACTORS),
    ("http", &["wire", "crypto", "rate", "federation", "metrics", "actors"]),
    (
        "server",
        &[
            "wire",
            "crypto",
            "policy",
            "rate",
            "group",
            "queue",
            "key_package",
            "account",
            "store",
            "metrics",
            "federation",
            "actors",
            "http",
        ],
    ),
    ("client", &["wire", "crypto", "policy", "migration"]),
    ("load", &["wire", "crypto", "policy", "client"]),
    (
        "cli",
        &[
            "wire",
            "crypto",
            "policy",
            "store",
            "metrics",
            "federation",
            "actors",
            "http",
            "server",
            "client",
            "load",
        ],
    ),
    ("main", &["cli"]),
    ("lib", &[]),
];
const RULES: &[&str] = &["wire", "crypto", "policy", "rate", "migration", "store"];
const ACTORS: &[&str] = &[
    "wire",
    "crypto",
    "policy",
    "rate",
    "migration",
    "group",
    "queue",
    "key_package",
    "account",
    "store",
    "metrics",
    "federation",
];

/// What is pure: told the time, given its randomness, awaiting nothing.
const PURE: &[&str] =
    &["wire", "policy", "rate", "migration", "group", "queue", "key_package", "account"];
const IMPURE: &[&str] = &[
    "actix",
    "tokio::",
    "std::fs",
    "std::net",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "async fn",
    "reqwest",
    "rusqlite",
    "sled::",
    "fjall::",
];

/// Lines of one file, its tests not counted.
const LINES_MAX: usize = 1000;

#[test]
fn imports_go_downward_only() {
    let mut wrong = Vec::new();
    for source in sources() {
        let Some((_, allowed)) = LAYERS.iter().find(|(layer, _)| *layer == source.layer) else {
            wrong.push(format!(
                "{}: name the layer of {} in {}",
                source.path,
                source.layer,
                file!()
            ));
            continue;
        };
        for imported in imports(&source.production) {
            if imported != source.layer && !allowed.contains(&imported.as_str()) {
                wrong.push(format!("{} imports {imported}", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rules_know_no_actors_no_disk_no_network_and_no_clock() {
    let mut wrong = Vec::new();
    for source in sources().into_iter().filter(|one| PURE.contains(&one.layer.as_str())) {
        for (number, line) in code_lines(&source.production) {
            for word in IMPURE {
                if line.contains(word) {
                    wrong.push(format!("{}:{number}: {word}", source.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn one_file_touches_the_public_group_of_openmls() {
    let holders: BTreeSet<String> = sources()
        .into_iter()
        .filter(|source| {
            source.layer != "lib"
                && code_lines(&source.production).any(|(_, line)| has_word(line, "PublicGroup"))
        })
        .map(|source| source.path)
        .collect();
    assert!(holders.len() <= 1, "PublicGroup in {holders:?}: it must stay replaceable");
}

#[test]
fn a_panic_outside_tests_gives_its_reason() {
    let mut wrong = Vec::new();
    // hooks of the fuzz targets are to panic
    for source in sources().into_iter().filter(|it| !it.path.ends_with("/fuzzing.rs")) {
        let lines: Vec<(usize, &str)> = code_lines(&source.production).collect();
        for (at, (number, line)) in lines.iter().enumerate() {
            let panics =
                [".unwrap()", ".expect(", "panic!(", "unreachable!(", "todo!(", "unimplemented!("];
            if panics.iter().any(|word| line.contains(word)) {
                let before = &lines[at.saturating_sub(REASON_WITHIN)..at];
                let reasoned = before.iter().any(|(_, line)| line.contains("reason ="));
                if !reasoned {
                    wrong.push(format!("{}:{number}: {}", source.path, line.trim()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "no #[expect(…, reason = …)] before:\n{}", wrong.join("\n"));
}

#[test]
fn files_say_what_they_hold_and_stay_short() {
    let mut wrong = Vec::new();
    for path in rust_files(&["src", "tests", "benches"]) {
        let text = fs::read_to_string(&path).unwrap();
        let name = relative(&path);
        if !text.starts_with("//!") {
            wrong.push(format!("{name} does not begin with //!"));
        }
    }
    for Source { path, production, .. } in sources() {
        let lines = production.lines().count();
        if lines > LINES_MAX {
            wrong.push(format!(
                "{path} has {lines} lines, more than {LINES_MAX}: look for the second idea"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// How many lines of code before a panic its reason may stand.
const REASON_WITHIN: usize = 30;

struct Source {
    path: String,
    /// The first segment under `src`.
    layer: String,
    /// The text up to its test module.
    production: String,
}

fn sources() -> Vec<Source> {
    let files: Vec<(PathBuf, String)> = rust_files(&["src"])
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect();
    let tests: BTreeSet<PathBuf> =
        files.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    files
        .into_iter()
        .filter(|(path, _)| {
            !tests.iter().any(|test| path.starts_with(test) || *path == test.with_extension("rs"))
        })
        .map(|(path, text)| {
            let name = relative(&path);
            let first = name.trim_start_matches("src/").split('/').next().unwrap();
            Source {
                layer: first.trim_end_matches(".rs").to_owned(),
                production: production(&text),
                path: name,
            }
        })
        .collect()
}

/// A file without its test modules, which stand last.
fn production(text: &str) -> String {
    let tests =
        test_attributes(text).find(|(_, item)| item.contains("mod ") && item.ends_with('{'));
    text[..tests.map_or(text.len(), |(at, _)| at)].to_owned()
}

/// The files (without extension) of modules that are compiled for tests only.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let stem = path.file_stem().unwrap().to_str().unwrap();
    let parent = path.parent().unwrap();
    let own =
        if ["mod", "lib", "main"].contains(&stem) { parent.to_owned() } else { parent.join(stem) };
    test_attributes(text)
        .filter_map(|(_, item)| match item.split_once("path = \"") {
            Some((_, named)) => Some(parent.join(named.split(".rs").next()?)),
            None => Some(own.join(identifier(item.strip_suffix(';')?.split_once("mod ")?.1)?)),
        })
        .collect()
}

/// Where each `#[cfg(test)]` stands, and the item behind it up to its `{` or `;` on one line, attributes included.
fn test_attributes(text: &str) -> impl Iterator<Item = (usize, String)> {
    text.match_indices("#[cfg(test)]").map(|(at, attribute)| {
        let rest = &text[at + attribute.len()..];
        let end = rest.find(['{', ';']).map_or(rest.len(), |end| end + 1);
        (at, rest[..end].split_whitespace().collect::<Vec<_>>().join(" "))
    })
}

/// Modules of ours that a text imports or names: `use crate::a::…`, `use crate::{a::…, b}`, `crate::a::f()`.
fn imports(text: &str) -> BTreeSet<String> {
    let code: String = code_lines(text).map(|(_, line)| format!("{line}\n")).collect();
    let mut found = BTreeSet::new();
    for root in ["crate::", "mimid::"] {
        for (at, _) in code.match_indices(root) {
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                None => found.extend(identifier(rest)),
                Some(list) => {
                    found.extend(top_level_items(list).iter().filter_map(|item| identifier(item)))
                }
            }
        }
    }
    // macros are called by `crate::name!`, and items of the crate root have no module
    found.retain(|name| name.chars().next().is_some_and(char::is_lowercase));
    found
}

fn identifier(text: &str) -> Option<String> {
    let name: String =
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The items of `a::{b, c}, d}` that stand at its outermost level: `a::{b, c}` and `d`.
fn top_level_items(list: &str) -> Vec<String> {
    let (mut items, mut item, mut depth) = (Vec::new(), String::new(), 0);
    for c in list.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => items.push(std::mem::take(&mut item)),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                item.push(c);
            }
        }
    }
    items.push(item);
    items
}

/// Lines that are not comments, numbered from 1.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    line.match_indices(word).any(|(at, _)| {
        !is_part(line[..at].chars().next_back()) && !is_part(line[at + word.len()..].chars().next())
    })
}

fn rust_files(folders: &[&str]) -> Vec<PathBuf> {
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut files = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_scanner_sees_nested_imports() {
    let text = "use crate::{\n    wire::{ids, ds},\n    store,\n};\nuse crate::policy::Role;\nfn f() { crate::group::g() }\n// use crate::http;\n";
    let found: Vec<String> = imports(text).into_iter().collect();
    assert_eq!(found, ["group", "policy", "store", "wire"]);
    assert!(has_word("use openmls::{PublicGroup};", "PublicGroup"));
    assert!(!has_word("PublicGroupError", "PublicGroup"));
}

#[test]
fn the_scanner_tells_tests_from_the_rest() {
    let text = "fn f() {}\n#[cfg(test)]\nfn helper() {}\n#[cfg(test)]\n#[allow(x)]\nmod more;\n#[cfg(test)]\nmod tests {\n}\n";
    assert!(production(text).ends_with("mod more;\n") && production(text).contains("helper"));
    assert_eq!(test_modules(Path::new("src/a/mod.rs"), text), [PathBuf::from("src/a/more")]);
    assert_eq!(test_modules(Path::new("src/a.rs"), text), [PathBuf::from("src/a/more")]);
}

//! Rules of the whole tree that no compiler keeps: licences, one crypto provider, no unsafe code,
//! files that fit a reader's head.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// A dependency must be had under one of these.
const LICENCES: &[&str] = &[
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "CC0-1.0",
    "Unlicense",
    "Unicode-3.0",
    "0BSD",
    "BSL-1.0",
    // Asks for the source of its own files only, changed or not; we change none.
    "MPL-2.0",
];

/// A second crypto provider beside the one chosen, or a library that needs one of the system's.
const BANNED: &[&str] = &["ring", "openssl", "openssl-sys", "native-tls"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

fn metadata() -> Result<Value> {
    // What other platforms would need is not downloaded.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &platform])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn packages(metadata: &Value) -> Result<&Vec<Value>> {
    metadata.get("packages").and_then(Value::as_array).context("no packages")
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// `A OR B AND C`, with or without parentheses: one alternative of which every part is allowed.
fn is_allowed(expression: &str) -> bool {
    let flat = expression.replace(['(', ')'], "").replace('/', " OR ");
    flat.split(" OR ").any(|choice| choice.split(" AND ").all(|part| LICENCES.contains(&part.trim())))
}

#[test]
fn every_dependency_has_a_licence_that_ours_allows() -> Result<()> {
    let metadata = metadata()?;
    let refused: Vec<String> = packages(&metadata)?
        .iter()
        .filter(|package| !is_allowed(text(package, "license")))
        .map(|package| {
            format!("{} {}: {}", text(package, "name"), text(package, "version"), text(package, "license"))
        })
        .collect();
    ensure!(refused.is_empty(), "not allowed: {refused:#?}");
    Ok(())
}

/// What is built, and not what Cargo.lock names because a feature that nobody turns on would need it.
#[test]
fn there_is_no_second_crypto_provider() -> Result<()> {
    let tree = ["tree", "--workspace", "--locked", "--offline", "--prefix", "none", "--format", "{p}"];
    let output = Command::new(env!("CARGO")).args(tree).current_dir(root()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let built = String::from_utf8(output.stdout)?;
    let names: Vec<&str> = built.lines().filter_map(|line| line.split(' ').next()).collect();
    ensure!(names.contains(&"aws-lc-rs"), "the one provider is not there: {names:?}");
    let found: Vec<&&str> = names.iter().filter(|name| BANNED.contains(name)).collect();
    ensure!(found.is_empty(), "banned: {found:?}");
    Ok(())
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        // What a build made is nobody's to split.
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn a_source_file_fits_a_readers_head() -> Result<()> {
    let mut files = Vec::new();
    for folder in ["engine", "proto", "agent", "server", "tests"] {
        sources(&root().join(folder), &mut files)?;
    }
    let mut long = Vec::new();
    for path in files {
        let source = fs::read_to_string(&path)?;
        let is_test =
            path.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs");
        // Tests beside the code do not count, they end a file.
        let code = source.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().lines().count();
        if code > if is_test { 700 } else { 450 } {
            long.push(format!("{}: {code} lines", path.display()));
        }
    }
    ensure!(long.is_empty(), "to be split: {long:#?}");
    Ok(())
}

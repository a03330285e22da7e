//! The table in `tests/README.md` names tests that exist, and leaves none of the suites' tests without a word.

use std::{collections::BTreeSet, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The rows of one suite's table: the suite's test, and what is said of it.
fn rows<'a>(readme: &'a str, suite: &str) -> Result<Vec<(&'a str, &'a str)>> {
    let begin = readme.find(&format!("\n### {suite}\n")).with_context(|| format!("no table of {suite}"))?;
    let section = readme.get(begin + 1..).unwrap_or_default();
    let section = section.split("\n#").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| {
        let (test, covered) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
        Some((test, covered)).filter(|(test, _)| *test != "its test")
    });
    Ok(rows.collect())
}

/// Whether a reference, `folder/file::function`, names a test.
fn exists(reference: &str) -> Result<bool> {
    let Some((file, function)) = reference.split_once("::") else { return Ok(false) };
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let ours = file.starts_with("acceptance/") || file.starts_with("kernel/");
    path.push(if ours { "tests" } else { ".." });
    path.push(format!("{file}.rs"));
    let source = fs::read_to_string(&path).with_context(|| format!("{reference}: {}", path.display()))?;
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let head = format!("fn {function}()");
    let is_test = |number: usize| number > 0 && lines.get(number - 1) == Some(&"#[test]");
    Ok(lines.iter().enumerate().any(|(number, line)| line.starts_with(&head) && is_test(number)))
}

#[test]
fn every_test_that_the_table_names_exists() -> Result<()> {
    let readme = fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("README.md"))?;
    let suites = [
        ("dmtest-python, `thin`", 43),
        ("dmtest-python, `thin_migrate`", 10),
        ("device-mapper-test-suite", 96),
    ];
    for (suite, expected) in suites {
        let rows = rows(&readme, suite)?;
        let names: BTreeSet<&str> = rows.iter().map(|(test, _)| *test).collect();
        ensure!(names.len() == rows.len(), "{suite}: a test is there twice");
        ensure!(rows.len() == expected, "{suite}: {} rows, not {expected}", rows.len());
        for (test, covered) in rows {
            let references: Vec<&str> =
                covered.split('`').skip(1).step_by(2).filter(|word| word.contains("::")).collect();
            let excused = covered.starts_with("does not apply") || covered.starts_with("as those");
            ensure!(excused || !references.is_empty(), "{test}: not covered, and no reason");
            for reference in references {
                ensure!(exists(reference)?, "{test}: there is no test {reference}");
            }
        }
    }
    Ok(())
}

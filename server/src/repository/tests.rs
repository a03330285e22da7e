use tempfile::TempDir;
use thinbak_proto::Failed;

use super::*;

fn exit_code(error: RepositoryError) -> u8 {
    Failed::from(error).exit_code()
}

async fn fresh() -> TempDir {
    let dir = TempDir::new().unwrap();
    Repository::init(dir.path(), InitOptions::default()).await.unwrap();
    dir
}

#[tokio::test]
async fn what_was_made_can_be_opened_and_keeps_its_identity() {
    let dir = TempDir::new().unwrap();
    let place = dir.path().join("deep/inside");
    let uuid = Repository::init(&place, InitOptions { chunk_bytes: 4096 }).await.unwrap();
    for _ in 0..2 {
        let repository = Repository::open(&place).await.unwrap();
        assert_eq!(
            (repository.uuid(), repository.chunk_bytes(), repository.format_version()),
            (uuid, 4096, 1)
        );
        repository.close().await;
    }
}

#[tokio::test]
async fn a_repository_is_made_in_an_empty_directory_only() {
    let dir = fresh().await;
    let again = Repository::init(dir.path(), InitOptions::default()).await.unwrap_err();
    assert!(matches!(again, RepositoryError::NotEmpty { repository: true, .. }));
    let other = TempDir::new().unwrap();
    fs::write(other.path().join("thesis.tex"), "years of work").unwrap();
    let refused = Repository::init(other.path(), InitOptions::default()).await.unwrap_err();
    assert!(matches!(refused, RepositoryError::NotEmpty { repository: false, .. }));
    assert_eq!(exit_code(refused), 5);
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn impossible_chunk_sizes_are_refused_before_anything_is_made() {
    let dir = TempDir::new().unwrap();
    for chunk_bytes in [0, 1, 2048, 65_535, 65_537, 2 << 20, u32::MAX] {
        let error = Repository::init(dir.path(), InitOptions { chunk_bytes }).await.unwrap_err();
        assert_eq!(exit_code(error), 2, "{chunk_bytes}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn where_no_repository_is_none_is_found() {
    let dir = TempDir::new().unwrap();
    for place in [dir.path().to_path_buf(), dir.path().join("absent")] {
        let error = Repository::open(&place).await.unwrap_err();
        assert!(matches!(error, RepositoryError::NotFound(_)));
        assert_eq!(exit_code(error), 10);
    }
}

#[tokio::test]
async fn a_repository_is_open_once_and_free_again_when_dropped() {
    let dir = fresh().await;
    let first = Repository::open(dir.path()).await.unwrap();
    let error = Repository::open(dir.path()).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Busy(_)));
    assert_eq!(exit_code(error), 11);
    first.close().await;
    drop(first);
    Repository::open(dir.path()).await.unwrap();
}

#[tokio::test]
async fn a_newer_format_is_refused_although_the_rest_of_the_file_is_unknown() {
    let dir = fresh().await;
    fs::write(dir.path().join(FILE_NAME), r#"{"format_version": 7, "shape": "torus"}"#).unwrap();
    let error = Repository::open(dir.path()).await.unwrap_err();
    assert!(matches!(error, RepositoryError::NewerFormat { found: 7, known: 1, .. }));
    assert!(Failed::from(error).hint.is_some());
}

#[tokio::test]
async fn a_file_that_says_nonsense_is_damage() {
    let dir = fresh().await;
    let good = fs::read_to_string(dir.path().join(FILE_NAME)).unwrap();
    let bad = [
        String::new(),
        "{".into(),
        good.replace("65536", "65537"),
        good.replace("\"format_version\": 1", "\"format_version\": 0"),
        good.replace("\"uuid\": \"", "\"uuid\": \"x"),
        " ".repeat(100_000),
    ];
    for text in bad {
        fs::write(dir.path().join(FILE_NAME), &text).unwrap();
        let error = Repository::open(dir.path()).await.unwrap_err();
        assert!(matches!(error, RepositoryError::Config { .. }), "{text:.60}: {error}");
        assert_eq!(exit_code(error), 4);
    }
}

#[tokio::test]
async fn a_missing_or_damaged_catalogue_is_damage_with_a_hint() {
    let dir = fresh().await;
    let path = dir.path().join(CATALOGUE_NAME);
    let good = fs::read(&path).unwrap();
    let mut torn = good.clone();
    torn[4096..8192].fill(0x5a);
    for bad in [Some(torn), Some(b"not a database, but long enough to be read as a header".repeat(100)), None]
    {
        match bad {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let failed = Failed::from(Repository::open(dir.path()).await.unwrap_err());
        assert_eq!(failed.exit_code(), 4, "{failed}");
        assert!(failed.hint.is_some());
    }
    fs::write(&path, good).unwrap();
    Repository::open(dir.path()).await.unwrap();
}

#[test]
fn names_that_the_grammar_cannot_tell_apart_are_refused() {
    for good in ["host/pool/v", "host/vg/pool/v", "v", "h:7440/p/v", "host//srv/pool/v.raw"] {
        assert_eq!(check_volume_name(good), Ok(()), "{good}");
    }
    for bad in
        ["", "/", "h/p/", "/p/v", "h/p/a:b", "h/p/a@b", "h/p/-v", "h/p/.v", "h/p/v\n", &"v".repeat(513)]
    {
        assert_eq!(check_volume_name(bad).unwrap_err().exit_code(), 2, "{bad:?}");
    }
}

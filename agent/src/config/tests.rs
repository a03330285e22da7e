use std::fs;

use super::*;

fn resolve(
    flags: Level,
    file: Option<&Path>,
    variables: &[(&str, &str)],
    root: bool,
) -> Result<Settings, Failed> {
    let variable = |name: &str| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
    };
    let around = Surroundings { variable: &variable, root, directory: PathBuf::from("/here") };
    Settings::resolve(flags, file, &around)
}

fn repository(settings: &Settings) -> Address {
    settings.repository().unwrap().address.unwrap()
}

/// So that no test depends on what is in /etc.
fn empty_file() -> tempfile::NamedTempFile {
    tempfile::NamedTempFile::new().unwrap()
}

#[test]
fn root_and_others_have_their_own_defaults() {
    let file = empty_file();
    let root = resolve(Level::default(), Some(file.path()), &[], true).unwrap();
    assert_eq!(root.state_dir, Path::new("/var/lib/thinbak"));
    assert_eq!(root.socket, Path::new("/run/thinbak/agent.sock"));
    let home = resolve(Level::default(), Some(file.path()), &[("HOME", "/home/u")], false).unwrap();
    assert_eq!(home.state_dir, Path::new("/home/u/.local/state/thinbak"));
    assert_eq!(home.socket, Path::new("/home/u/.local/state/thinbak/agent.sock"));
    let xdg = [("HOME", "/home/u"), ("XDG_STATE_HOME", "/s"), ("XDG_RUNTIME_DIR", "/run/user/7")];
    let xdg = resolve(Level::default(), Some(file.path()), &xdg, false).unwrap();
    assert_eq!(xdg.state_dir, Path::new("/s/thinbak"));
    assert_eq!(xdg.socket, Path::new("/run/user/7/thinbak/agent.sock"));
    assert_eq!(resolve(Level::default(), Some(file.path()), &[], false).unwrap_err().exit_code(), 2);
}

#[test]
fn flags_beat_the_environment_and_that_beats_the_file() {
    let file = empty_file();
    fs::write(file.path(), "state_dir = \"/file\"\nsocket = \"/file.sock\"\nrepository = \"/file-repo\"\n")
        .unwrap();
    let only_file = resolve(Level::default(), Some(file.path()), &[], true).unwrap();
    assert_eq!(only_file.state_dir, Path::new("/file"));
    assert_eq!(only_file.socket, Path::new("/file.sock"));
    assert_eq!(repository(&only_file), Address::Directory("/file-repo".to_owned()));
    let variables =
        [("THINBAK_STATE_DIR", "/env"), ("THINBAK_SERVER", "http://env:1"), ("THINBAK_SOCKET", "")];
    let environment = resolve(Level::default(), Some(file.path()), &variables, true).unwrap();
    assert_eq!(environment.state_dir, Path::new("/env"));
    assert_eq!(environment.socket, Path::new("/file.sock"), "an empty variable says nothing");
    assert_eq!(repository(&environment), Address::Url("http://env:1".to_owned()));
    let flags = Level { state_dir: Some("flag".into()), repository: Some("r".into()), ..Level::default() };
    let flags = resolve(flags, Some(file.path()), &variables, true).unwrap();
    assert_eq!(flags.state_dir, Path::new("/here/flag"), "relative to the current directory");
    assert_eq!(
        repository(&flags),
        Address::Directory("/here/r".to_owned()),
        "a flag beats the other's variable"
    );
}

#[test]
fn server_and_repository_at_one_level_are_a_usage_error() {
    let file = empty_file();
    let both = Level { server: Some("http://s".into()), repository: Some("/r".into()), ..Level::default() };
    assert_eq!(resolve(both, Some(file.path()), &[], true).unwrap_err().exit_code(), 2);
    let variables = [("THINBAK_SERVER", "http://s"), ("THINBAK_REPOSITORY", "/r")];
    assert_eq!(resolve(Level::default(), Some(file.path()), &variables, true).unwrap_err().exit_code(), 2);
    let flag = Level { server: Some("http://f".into()), ..Level::default() };
    let chosen = resolve(flag, Some(file.path()), &variables, true).unwrap();
    assert_eq!(repository(&chosen), Address::Url("http://f".to_owned()));
}

#[test]
fn the_socket_follows_a_state_directory_that_was_given() {
    let file = empty_file();
    let flags = Level { state_dir: Some("/elsewhere".into()), ..Level::default() };
    let settings = resolve(flags, Some(file.path()), &[], true).unwrap();
    assert_eq!(settings.socket, Path::new("/elsewhere/agent.sock"));
}

#[test]
fn a_file_that_is_missing_or_says_something_unknown_is_a_usage_error() {
    let missing = resolve(Level::default(), Some(Path::new("/none/such.toml")), &[], true).unwrap_err();
    assert_eq!(missing.exit_code(), 2);
    let file = empty_file();
    fs::write(file.path(), "sokcet = \"/x\"\n").unwrap();
    let unknown = resolve(Level::default(), Some(file.path()), &[], true).unwrap_err();
    assert!(unknown.message.contains("sokcet"), "{unknown}");
}

#[test]
fn no_repository_is_told_only_when_one_is_needed() {
    let file = empty_file();
    let settings = resolve(Level::default(), Some(file.path()), &[], true).unwrap();
    let failed = settings.repository().unwrap_err();
    assert_eq!((failed.exit_code(), failed.hint.is_some()), (2, true));
}

#[test]
fn a_socket_path_that_the_kernel_would_cut_is_refused() {
    let file = empty_file();
    let flags = Level { socket: Some(format!("/{}", "x".repeat(107)).into()), ..Level::default() };
    assert_eq!(resolve(flags, Some(file.path()), &[], true).unwrap_err().exit_code(), 2);
}

#[test]
fn the_token_of_the_file_goes_to_the_server_of_the_file_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, "server = \"https://f:1\"\ntoken_file = \"/token\"\nfingerprint = \"sha256:1\"\n")
        .unwrap();
    let settings = |server: Option<&str>| {
        let variable = |name: &str| (name == "HOME").then(|| "/home/u".into());
        let around = Surroundings { variable: &variable, root: false, directory: "/here".into() };
        let flags = Level { server: server.map(str::to_owned), ..Level::default() };
        repository(&Settings::resolve(flags, Some(&path), &around).unwrap())
    };
    for same in [None, Some("https://f:1")] {
        let Address::Server(server) = settings(same) else { panic!("{same:?}") };
        assert_eq!((server.token_file.as_str(), server.fingerprint.as_str()), ("/token", "sha256:1"));
    }
    assert_eq!(settings(Some("https://evil:1")), Address::Url("https://evil:1".to_owned()));
}

//! A server over TLS with tokens, through the programs: what each may do, and what is told to whom.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::PathBuf,
    process::{Child, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use thinbak_tests::{Model, Outcome, Way, World, number, seed, spawn};

const SIZE: u64 = 8 << 20;

/// A server over TLS, ended with SIGKILL when dropped.
struct Server {
    child: Child,
    url: String,
    fingerprint: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Of a process that has ended there is nothing to end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(world: &World, listen: &str) -> Result<Self> {
        let repo = world.repo().display().to_string();
        let mut command = world.server.command(&["run", "--repo", &repo, "--listen", listen, "--tls"]);
        let mut child = spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let mut lines = BufReader::new(child.stderr.take().context("no stderr")?).lines();
        let line = lines.find(|line| line.as_ref().map_or(true, |line| line.contains("listening on ")));
        let line = line.context("the server ended")??;
        let (_, said) = line.split_once("listening on ").context("no address")?;
        let (address, fingerprint) = said.split_once(" with certificate ").context("no certificate")?;
        let port = address.rsplit(':').next().context("no port")?;
        // What it says later must not fill the pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self {
            child,
            url: format!("https://127.0.0.1:{port}"),
            fingerprint: fingerprint.trim().to_owned(),
        })
    }
}

/// Makes a token, and puts it into a file.
fn token(world: &World, at: &[&str], name: &str, scope: &str, volumes: &str) -> Result<PathBuf> {
    let words = ["token", "create", "--name", name, "--scope", scope, "--volumes", volumes];
    let made = world.server.ok(&[&words, at].concat())?;
    ensure!(!made.stderr.contains("tbk_"), "the token is told twice: {}", made.stderr);
    let file = world.scratch.join(name);
    fs::write(&file, made.stdout)?;
    Ok(file)
}

struct Client<'w> {
    world: &'w World,
    server: &'w Server,
    token: PathBuf,
}

impl Client<'_> {
    fn run(&self, words: &[&str]) -> Result<Outcome> {
        let (Server { url, fingerprint, .. }, token) = (self.server, self.token.display().to_string());
        let trusted = ["--server", url, "--fingerprint", fingerprint, "--token-file", &token];
        let outcome = self.world.thinbak.run(&[words, &trusted].concat())?;
        let secret = fs::read_to_string(&self.token)?;
        let secret = secret.trim().rsplit('_').next().context("no secret")?;
        ensure!(!outcome.stderr.contains(secret) && !outcome.text().contains(secret), "the secret is told");
        Ok(outcome)
    }
}

#[test]
fn tokens_over_tls_do_what_they_are_for_and_no_more() -> Result<()> {
    let world = World::new(Way::Embedded, SIZE)?;
    Model::new(SIZE, seed()?).scribble(&*world.open_pool()?, "v", 30)?;
    let repo = world.repo().display().to_string();
    let admin = token(&world, &["--repo", &repo], "root", "admin", "*")?;
    // Off the loopback as well: nothing is had there without a token.
    let server = Server::start(&world, "0.0.0.0:0")?;
    let printed = world.server.ok(&["fingerprint", "--repo", &repo])?.text();
    ensure!(printed.trim() == server.fingerprint, "{printed}");
    let root = admin.display().to_string();
    let at = ["--server", &server.url, "--fingerprint", &server.fingerprint, "--token-file", &root];
    let agent = token(&world, &at, "agent", "backup", "host1/*")?;
    let reader = token(&world, &at, "reader", "restore", "host1/*")?;
    let other = token(&world, &at, "other", "restore", "host2/*")?;
    let client = |token: &PathBuf| Client { world: &world, server: &server, token: token.clone() };
    let (agent, reader, other, root) = (client(&agent), client(&reader), client(&other), client(&admin));

    let volume = world.volume("v");
    agent.run(&["backup", &volume, "--host", "host1"])?.expect(0)?;
    Model::new(SIZE, seed()?.wrapping_add(1)).scribble(&*world.open_pool()?, "v", 5)?;
    agent.run(&["backup", &volume, "--host", "host1"])?.expect(0)?;
    agent.run(&["backup", &volume, "--host", "host2"])?.expect(12)?;
    // What the pool looks like is stored with that token as well, also of a pool that was made anew.
    let shape: Value =
        serde_json::from_str(&reader.run(&["--json", "pool", "shape", "host1/p"])?.expect(0)?.text())?;
    ensure!(number(&shape, "generation")? == 1, "{shape}");
    other.run(&["pool", "shape", "host1/p"])?.expect(10)?;
    let name = "host1/p/v";
    let first = format!("{name}:1");
    agent.run(&["generation", "delete", &first])?.expect(12)?;
    agent.run(&["prune", name, "--keep-last", "1"])?.expect(12)?;
    agent.run(&["restore", &first, "--to", "p/stolen"])?.expect(12)?;
    other.run(&["restore", &first, "--to", "p/stolen"])?.expect(10)?;
    ensure!(!other.run(&["generation", "list"])?.expect(0)?.text().contains("host1"));
    reader.run(&["restore", &format!("{name}:latest"), "--to", "p/copy"])?.expect(0)?;
    ensure!(world.export("copy")? == world.export("v")?);
    reader.run(&["backup", &volume, "--host", "host1"])?.expect(12)?;
    root.run(&["generation", "delete", &first])?.expect(0)?;

    world.server.ok(&[&["token", "revoke", "agent"], &at[..]].concat())?;
    agent.run(&["backup", &volume, "--host", "host1"])?.expect(12)?;
    let log = world.server.ok(&[&["audit", "--json"], &at[..]].concat())?.text();
    for told in
        ["\"generation 2\"", "Access/RevokeToken", "which does not include Repository/DeleteGeneration"]
    {
        ensure!(log.contains(told), "{told}: {log}");
    }
    // With another certificate, without a token, and in the clear.
    let pinned = format!("sha256:{}", "0".repeat(64));
    let list = ["generation", "list", "--server", &server.url];
    world.thinbak.run(&[&list[..], &["--fingerprint", &pinned]].concat())?.expect(12)?;
    let nobody =
        world.thinbak.run(&[&list[..], &["--fingerprint", &server.fingerprint]].concat())?.expect(12)?;
    ensure!(nobody.stderr.contains("--token-file"), "{}", nobody.stderr);
    let clear = server.url.replace("https://", "http://");
    let clear = world.thinbak.run(&["generation", "list", "--server", &clear])?.expect(10)?;
    ensure!(clear.stderr.contains("https://"), "{}", clear.stderr);
    Ok(())
}

#[test]
fn once_a_token_was_made_it_is_asked_for_in_the_clear_as_well() -> Result<()> {
    let mut world = World::bare(Way::Network)?;
    world.on_repository(&["generation", "list"])?.expect(0)?;
    let url = world.running.as_ref().context("no server")?.url.clone();
    let made = token(&world, &["--server", &url], "root", "admin", "*")?.display().to_string();
    world.on_repository(&["generation", "list"])?.expect(12)?;
    world.on_repository(&["generation", "list", "--token-file", &made])?.expect(0)?;
    // Not only until the server starts again, and not less when none is good any more.
    world.running = None;
    world.start_server()?;
    world.on_repository(&["generation", "list"])?.expect(12)?;
    let url = world.running.as_ref().context("no server")?.url.clone();
    world.server.ok(&["token", "revoke", "root", "--server", &url, "--token-file", &made])?;
    world.on_repository(&["generation", "list", "--token-file", &made])?.expect(12)?;
    world.on_repository(&["generation", "list"])?.expect(12)?;
    Ok(())
}

/// A catalogue that is brought back from a copy, or made anew, opens no door that was closed.
#[test]
fn a_token_that_was_revoked_stays_so_whatever_becomes_of_the_catalogue() -> Result<()> {
    let mut world = World::bare(Way::Embedded)?;
    let repo = world.repo().display().to_string();
    let at = ["--repo", &repo[..]];
    let good = token(&world, &at, "good", "admin", "*")?.display().to_string();
    let bad = token(&world, &at, "bad", "admin", "*")?.display().to_string();
    let copy = world.scratch.join("copy.sqlite");
    fs::copy(world.repo().join("catalogue.sqlite"), &copy)?;
    world.server.ok(&["token", "revoke", "bad", "--repo", &repo])?;
    let later = token(&world, &at, "later", "admin", "*")?.display().to_string();
    let copy = copy.display().to_string();
    let lost: [(&[&str], bool); 4] = [
        (&["restore-catalogue", "--repo", &repo, &copy], false),
        (&["rebuild-catalogue", "--repo", &repo], false),
        (&["restore-catalogue", "--repo", &repo, &copy], true),
        (&["rebuild-catalogue", "--repo", &repo], true),
    ];
    for (words, damaged) in lost {
        if damaged {
            fs::write(world.repo().join("catalogue.sqlite"), b"no catalogue")?;
        }
        let said = world.server.ok(words)?;
        ensure!(said.stderr.contains("could not be taken over") == damaged, "{words:?}: {}", said.stderr);
        world.start_server()?;
        let server = world.running.as_ref().context("no server")?;
        let list = |token: Option<&str>| {
            let mut words = vec!["generation", "list", "--server", &server.url];
            words.extend(token.iter().flat_map(|token| ["--token-file", token]));
            world.thinbak.run(&words)
        };
        // Of a catalogue that cannot be read nothing is known but that there were tokens.
        list(None)?.expect(12)?;
        if !damaged {
            list(Some(&good))?.expect(0)?;
            list(Some(&later))?.expect(0)?;
            list(Some(&bad))?.expect(12)?;
        }
        world.running.take().context("no server")?.stop()?;
        let audit = world.server.ok(&["audit", "--repo", &repo])?.text();
        ensure!(damaged || audit.contains("Access/RevokeToken"), "{audit}");
    }
    Ok(())
}

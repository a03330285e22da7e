//! `thinbak-server token` and `thinbak-server audit`.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use comfy_table::{Table, presets};
use serde_json::{Value, json};
use thinbak_proto::{Failed, format_local, format_utc, remote::RemoteChannel, v1};
use thinbak_server::{Repository, config::Config, routes};
use tonic::{body::Body, codegen::http};
use tower::{ServiceExt, util::BoxCloneSyncService};
use v1::access_client::AccessClient;

use super::{
    arguments::{At, Token},
    milliseconds,
    output::Output,
    place::Address,
};

/// The services, at a server or in this process.
struct Services {
    channel: RemoteChannel,
    own: Option<Arc<Repository>>,
}

impl Services {
    async fn at(at: At, config: &Config) -> Result<Self, Failed> {
        match at.address(config).await? {
            Address::Server(channel) => Ok(Self { channel, own: None }),
            Address::Directory(dir) => {
                let repository = Repository::open(&dir).await?;
                let services = routes(Arc::clone(&repository)).prepare();
                let services =
                    ServiceExt::<http::Request<Body>>::map_err(services, |never: Infallible| match never {});
                Ok(Self { channel: BoxCloneSyncService::new(services), own: Some(repository) })
            }
        }
    }

    async fn close(self) {
        drop(self.channel);
        if let Some(repository) = self.own {
            repository.close().await;
        }
    }
}

pub(super) async fn token(command: Token, config: &Config, output: &Output) -> Result<u8, Failed> {
    let at = match &command {
        Token::Create { at, .. } | Token::List { at, .. } | Token::Revoke { at, .. } => at.clone(),
    };
    let services = Services::at(at, config).await?;
    let outcome = call(command, AccessClient::new(services.channel.clone()), output).await;
    services.close().await;
    outcome
}

async fn call(
    command: Token,
    mut client: AccessClient<RemoteChannel>,
    output: &Output,
) -> Result<u8, Failed> {
    match command {
        Token::Create { name, scope, volumes, expires, .. } => {
            let request = v1::CreateTokenRequest {
                name,
                scope: v1::Scope::from(scope).into(),
                volumes,
                expires_in_ms: expires.map_or(0, milliseconds),
            };
            let made = client.create_token(request).await?.into_inner();
            output.token_made(&made);
        }
        Token::List { .. } => {
            output.tokens(&client.list_tokens(v1::ListTokensRequest {}).await?.into_inner().tokens);
        }
        Token::Revoke { token, .. } => {
            let revoked = client.revoke_token(v1::RevokeTokenRequest { token }).await?.into_inner();
            if output.json {
                output.data(token_json(&revoked));
            } else {
                output.say(format_args!("revoked token {} ({})", revoked.name, revoked.id));
            }
        }
    }
    Ok(0)
}

pub(super) async fn audit(
    at: At,
    since: Option<Duration>,
    config: &Config,
    output: &Output,
) -> Result<u8, Failed> {
    let services = Services::at(at, config).await?;
    let mut client = AccessClient::new(services.channel.clone()).max_decoding_message_size(usize::MAX);
    let since_ms = since.map_or(0, |age| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(now.saturating_sub(age).as_millis()).unwrap_or(u64::MAX)
    });
    let outcome = async {
        let mut after = 0;
        loop {
            let request = v1::ListAuditRequest { since_ms, after, page_size: 0 };
            let entries = client.list_audit(request).await?.into_inner().entries;
            let Some(last) = entries.last() else { return Ok(0) };
            after = last.number;
            entries.iter().for_each(|entry| output.audit(entry));
        }
    };
    let outcome: Result<u8, Failed> = outcome.await;
    drop(client);
    services.close().await;
    outcome
}

fn scope_name(token: &v1::TokenInfo) -> &'static str {
    match token.scope() {
        v1::Scope::Unspecified => "none",
        v1::Scope::Backup => "backup",
        v1::Scope::Restore => "restore",
        v1::Scope::Replicate => "replicate",
        v1::Scope::Admin => "admin",
    }
}

fn token_json(token: &v1::TokenInfo) -> Value {
    let time = |ms: u64| (ms != 0).then(|| format_utc(ms));
    json!({
        "id": token.id,
        "name": token.name,
        "scope": scope_name(token),
        "volumes": token.volumes,
        "created_at": time(token.created_at_ms),
        "expires_at": time(token.expires_at_ms),
        "revoked_at": time(token.revoked_at_ms),
    })
}

impl Output {
    /// The token itself is the only thing on stdout, to be put into a file.
    fn token_made(&self, made: &v1::CreateTokenResponse) {
        let info = made.info.clone().unwrap_or_default();
        if self.json {
            let mut shown = token_json(&info);
            if let Some(fields) = shown.as_object_mut() {
                fields.insert("token".to_owned(), Value::from(made.token.as_str()));
            }
            return self.data(shown);
        }
        self.data(&made.token);
        self.say(format_args!("made token {} for {}; it is not shown again", info.name, scope_name(&info)));
    }

    fn tokens(&self, tokens: &[v1::TokenInfo]) {
        if self.json {
            return self.data(Value::from(tokens.iter().map(token_json).collect::<Vec<_>>()));
        }
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["NAME", "ID", "SCOPE", "VOLUMES", "MADE", "ENDS"]);
        for token in tokens {
            let ends = match (token.revoked_at_ms, token.expires_at_ms) {
                (0, 0) => "never".to_owned(),
                (0, expires) => format_local(expires),
                (revoked, _) => format!("revoked {}", format_local(revoked)),
            };
            let (volumes, made) = (token.volumes.join(" "), format_local(token.created_at_ms));
            table.add_row([&token.name, &token.id, scope_name(token), &volumes, &made, &ends]);
        }
        self.data(table);
    }

    fn audit(&self, entry: &v1::AuditEntry) {
        let v1::AuditEntry { number, at_ms, token, peer, call, volume, outcome } = entry;
        if self.json {
            return self.data(json!({
                "number": number, "at": format_utc(*at_ms), "token": token, "peer": peer, "call": call,
                "volume": volume, "outcome": outcome,
            }));
        }
        let or = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let (token, peer, volume) = (or(token), or(peer), or(volume));
        self.data(format_args!("{} {token} {peer} {call} {volume} {outcome}", format_local(*at_ms)));
    }
}

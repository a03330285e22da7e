//! The table: whom each call is for, and where it names its volume.

use thinbak_proto::v1::Scope::{self, Backup, Replicate, Restore};

/// Where a call names its volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    /// Nowhere: it is about all of the repository, or about ids.
    Nothing,
    /// In this field of its request.
    Field(&'static str),
    /// In the first message of its stream.
    Begin,
    /// It lists volumes: those that the token covers.
    Lists,
}

/// What holds for one call.
#[derive(Debug)]
pub(crate) struct Rule {
    /// SERVICE/METHOD.
    pub(crate) call: &'static str,
    /// Beside the admin, who may call everything.
    pub(crate) scopes: &'static [Scope],
    #[cfg_attr(not(test), expect(dead_code, reason = "the table is tested against what the guards do"))]
    pub(crate) names: Names,
    /// Whether it is written down that it was made.
    pub(crate) audited: bool,
}

const ALL: &[Scope] = &[Backup, Restore, Replicate];
const READERS: &[Scope] = &[Restore, Replicate];
const WRITERS: &[Scope] = &[Backup, Replicate];
const ADMIN: &[Scope] = &[];

const fn rule(call: &'static str, scopes: &'static [Scope], names: Names, audited: bool) -> Rule {
    Rule { call, scopes, names, audited }
}

/// Every call of every service that a server has. Health and reflection are for everybody and tell nothing of
/// volumes.
pub(crate) const RULES: &[Rule] = &[
    rule("Repository/Info", ALL, Names::Nothing, false),
    rule("Repository/Stats", ADMIN, Names::Nothing, false),
    rule("Repository/ListVolumes", ALL, Names::Lists, false),
    rule("Repository/ListGenerations", ALL, Names::Lists, false),
    rule("Repository/GetGeneration", ALL, Names::Field("volume"), false),
    rule("Repository/GetDamage", ALL, Names::Field("volume"), false),
    rule("Repository/DeleteGeneration", ADMIN, Names::Field("volume"), true),
    rule("Repository/ProtectGeneration", ADMIN, Names::Field("volume"), true),
    rule("Repository/UndeleteGeneration", ADMIN, Names::Field("volume"), true),
    rule("Repository/Prune", ADMIN, Names::Field("volume"), true),
    rule("Repository/Collect", ADMIN, Names::Nothing, true),
    rule("Repository/BackupCatalogue", ADMIN, Names::Nothing, true),
    rule("Repository/Verify", ADMIN, Names::Field("volume"), true),
    rule("Ingest/Backup", WRITERS, Names::Begin, true),
    rule("Content/GetNodes", ALL, Names::Nothing, false),
    rule("Content/GetChunks", READERS, Names::Nothing, false),
    rule("Content/Hold", READERS, Names::Field("volume"), true),
    rule("Access/CreateToken", ADMIN, Names::Nothing, true),
    rule("Access/ListTokens", ADMIN, Names::Nothing, false),
    rule("Access/RevokeToken", ADMIN, Names::Nothing, true),
    rule("Access/ListAudit", ADMIN, Names::Nothing, false),
];

/// The rule of a call.
pub(crate) fn rule_of(call: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.call == call)
}

/// As people write it.
pub(crate) fn name_of(scope: Scope) -> &'static str {
    match scope {
        Scope::Unspecified => "none",
        Scope::Backup => "backup",
        Scope::Restore => "restore",
        Scope::Replicate => "replicate",
        Scope::Admin => "admin",
    }
}

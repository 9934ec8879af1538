//! Names, each with its own rules: parsed once, then trusted.

use std::fmt;

use thiserror::Error;

/// The `SecretId` of a request to Secrets Manager: a secret's name or its ARN.
///
/// Shape: 1 to 2048 characters; a name is 1 to 512 of `A-Z a-z 0-9 / _ + = . @ -` (AWS, `CreateSecret`, `Name`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretId(String);

/// The name of a secret that keytide writes: 1 to 512 of `A-Z a-z 0-9 / _ + = . @ -` (AWS, `CreateSecret`, `Name`), and no
/// empty segment, `.` or `..` between its slashes, which some of AWS's tools and emulators take for a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretName(String);

/// The name of a hosted key: of one piece of text that outputs carry.
///
/// Any text without control characters, 1 to 512 bytes; what a certain output can carry is checked where it is written
/// ([`EnvName`], [`FileName`]).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyName(String);

/// The name of a member of a JSON secret. Any text, also the empty one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member(String);

/// The name of an environment variable: `[A-Za-z_][A-Za-z0-9_]*` (POSIX.1-2017, 8.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EnvName(String);

/// The name of one file in a directory, or of one key of a Kubernetes Secret: `[-._A-Za-z0-9]{1,253}`, not beginning
/// with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileName(String);

/// The name by which logs, metrics and status call an output: `[a-z0-9_-]{1,63}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputName(String);

/// The name by which logs, metrics and status call a reload action: as that of an output.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionName(String);

/// A staging label of a secret's version, such as `AWSCURRENT`: 1 to 256 characters (AWS, `GetSecretValue`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionStage(String);

/// The id of one version of a secret, as AWS gave it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VersionId(String);

/// A name that breaks the rules of its kind. Says the rule; the caller says the name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{expected}")]
pub struct NameError {
    expected: &'static str,
}

const SECRET_ID: &str = "expected the name of a secret (1 to 512 of A-Z a-z 0-9 / _ + = . @ -) or its ARN";
const SECRET_NAME: &str =
    "expected the name of a secret: 1 to 512 of A-Z a-z 0-9 / _ + = . @ -, without //, and no . or .. between slashes";
const KEY_NAME: &str = "expected 1 to 512 bytes without control characters";
const ENV_NAME: &str =
    "expected the name of an environment variable: letters, digits and _, not beginning with a digit";
const FILE_NAME: &str = "expected 1 to 253 of A-Z a-z 0-9 - . _, not beginning with a dot";
const OUTPUT_NAME: &str = "expected 1 to 63 of a-z 0-9 - _";
const VERSION_STAGE: &str = "expected a staging label of 1 to 256 characters";
const VERSION_ID: &str = "expected a version id of 1 to 64 visible characters";

macro_rules! name {
    ($name:ident, $rule:ident, $expected:ident) => {
        impl $name {
            /// Parses the name.
            ///
            /// # Errors
            /// If it breaks the rule that the type states.
            pub fn parse(text: impl Into<String>) -> Result<Self, NameError> {
                let text = text.into();
                if $rule(&text) { Ok(Self(text)) } else { Err(NameError { expected: $expected }) }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(SecretId, is_secret_id, SECRET_ID);
name!(SecretName, is_secret_name, SECRET_NAME);
name!(KeyName, is_key_name, KEY_NAME);
name!(EnvName, is_env_name, ENV_NAME);
name!(FileName, is_file_name, FILE_NAME);
name!(OutputName, is_output_name, OUTPUT_NAME);
name!(ActionName, is_output_name, OUTPUT_NAME);
name!(VersionStage, is_version_stage, VERSION_STAGE);
name!(VersionId, is_version_id, VERSION_ID);

// === impl NameError ===

impl NameError {
    /// A name that is not what was expected.
    pub(super) const fn expecting(expected: &'static str) -> Self {
        Self { expected }
    }
}

// === impl Member ===

impl Member {
    /// Any text is a member's name.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl SecretId ===

impl SecretId {
    /// True if it may mean the secret of this name: it is the name, or an ARN of it in whatever account, with or without
    /// the six characters that AWS puts behind a name.
    #[must_use]
    pub fn may_mean(&self, name: &SecretName) -> bool {
        let Some((_, tail)) = self.0.split_once(":secret:") else { return self.0 == name.0 };
        tail.strip_prefix(name.as_str())
            .is_some_and(|rest| rest.is_empty() || (rest.len() == 7 && rest.starts_with('-')))
    }
}

// === impl KeyName ===

impl KeyName {
    /// True for the five names that LiteLLM never reads from AWS, since the connection to AWS itself is made of them
    /// (LiteLLM, `secret_managers/aws_secret_manager_v2.py`).
    #[must_use]
    pub fn is_never_read(&self) -> bool {
        matches!(
            self.0.as_str(),
            "AWS_ACCESS_KEY_ID"
                | "AWS_SECRET_ACCESS_KEY"
                | "AWS_REGION_NAME"
                | "AWS_REGION"
                | "AWS_BEDROCK_RUNTIME_ENDPOINT"
        )
    }
}

// === impl EnvName ===

impl EnvName {
    /// True for a name that changes how programs run: exported only where an entry of `keys` says `allow_reserved`.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        const EXACT: [&str; 55] = [
            "PATH",
            "IFS",
            "ENV",
            "CDPATH",
            "HOME",
            "SHELL",
            "USER",
            "LOGNAME",
            "PWD",
            "OLDPWD",
            "TMPDIR",
            "TERM",
            "PS1",
            "PS2",
            "PS3",
            "PS4",
            "PROMPT_COMMAND",
            "FPATH",
            "GLOBIGNORE",
            "SHELLOPTS",
            "HOSTALIASES",
            "LOCPATH",
            "NLSPATH",
            "RES_OPTIONS",
            "LOCALDOMAIN",
            "JAVA_TOOL_OPTIONS",
            "JDK_JAVA_OPTIONS",
            "_JAVA_OPTIONS",
            "CLASSPATH",
            "RUBYOPT",
            "RUBYLIB",
            "NODE_OPTIONS",
            "NODE_PATH",
            "GEM_PATH",
            "GEM_HOME",
            "HOSTNAME",
            "ZDOTDIR",
            "PHPRC",
            "PS0",
            "RANDOM",
            "SRANDOM",
            "OPTIND",
            "SECONDS",
            "HISTCMD",
            "HISTSIZE",
            "COLUMNS",
            "LINES",
            "SHLVL",
            "TMOUT",
            "MAILCHECK",
            "MAILPATH",
            "BASHPID",
            "LINENO",
            "GID",
            "EGID",
        ];
        const PREFIX: [&str; 13] = [
            "LD_",
            "DYLD_",
            "BASH_",
            "PYTHON",
            "PERL",
            "SSL_CERT_",
            "AWS_",
            "KUBERNETES_",
            "GLIBC_",
            "MALLOC_",
            "GCONV_",
            "GIT_",
            "DOTNET_",
        ];
        let upper = self.0.to_ascii_uppercase();
        EXACT.contains(&upper.as_str())
            || PREFIX.iter().any(|prefix| upper.starts_with(prefix))
            || upper.ends_with("_PROXY")
            || self.is_shell_read_only()
    }

    /// True for a variable that bash holds read-only: an assignment to it ends a script that sources the file under
    /// `set -e` (bash(1), "Shell Variables"; `_` is overwritten after each command).
    #[must_use]
    pub fn is_shell_read_only(&self) -> bool {
        matches!(self.0.as_str(), "UID" | "EUID" | "PPID" | "BASHOPTS" | "SHELLOPTS" | "BASH_VERSINFO" | "_")
    }
}

fn of_secret_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "/_+=.@-".contains(c)
}

fn is_secret_name(text: &str) -> bool {
    // A name may begin with a slash, and end in one; in between each segment is something.
    let middle = text.strip_prefix('/').unwrap_or(text);
    let middle = middle.strip_suffix('/').unwrap_or(middle);
    (1..=512).contains(&text.len())
        && text.chars().all(of_secret_name)
        && middle.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
}

fn is_secret_id(text: &str) -> bool {
    let legal = of_secret_name;
    if text.starts_with("arn:") {
        text.len() <= 2048 && text.chars().all(|c| legal(c) || c == ':')
    } else {
        (1..=512).contains(&text.len()) && text.chars().all(legal)
    }
}

fn is_key_name(text: &str) -> bool {
    (1..=512).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn is_env_name(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn is_file_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && !text.starts_with('.')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
}

fn is_output_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c))
}

fn is_version_stage(text: &str) -> bool {
    (1..=256).contains(&text.len()) && text.chars().all(|c| !c.is_control())
}

fn is_version_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_change_how_programs_run_are_reserved() {
        for name in [
            "LD_PRELOAD",
            "PATH",
            "IFS",
            "ENV",
            "BASH_ENV",
            "PS1",
            "PS4",
            "PYTHONPATH",
            "NODE_OPTIONS",
            "JAVA_TOOL_OPTIONS",
            "HTTPS_PROXY",
            "https_proxy",
            "SSL_CERT_FILE",
            "AWS_PROFILE",
            "KUBERNETES_SERVICE_HOST",
            "UID",
            "PPID",
        ] {
            assert!(EnvName::parse(name).unwrap().is_reserved(), "{name}");
        }
        for name in
            ["OPENAI_API_KEY", "litellm_master_key", "DATABASE_URL", "PROXY_MASTER_KEY", "PATHS", "LDAP_PASSWORD"]
        {
            assert!(!EnvName::parse(name).unwrap().is_reserved(), "{name}");
        }
    }

    #[test]
    fn each_kind_of_name_keeps_its_rule() {
        assert!(SecretId::parse("litellm/key@a+b=c.d-e_f").is_ok());
        assert!(SecretId::parse("arn:aws:secretsmanager:us-east-1:123456789012:secret:a-AbCdEf").is_ok());
        assert!(
            SecretId::parse("a b").is_err()
                && SecretId::parse("").is_err()
                && SecretId::parse("a".repeat(513)).is_err()
        );
        for name in ["a", "/lead", "litellm/team/a", "a@b.c+d=e", "-", "a..b", "litellm/k/"] {
            assert!(SecretName::parse(name).is_ok(), "{name}");
        }
        for name in ["", "/", "//", "a//b", "a/../b", "..", "./a", "a/.", "a b", "ключ", "a:b", "a\n", &"a".repeat(513)]
        {
            assert!(SecretName::parse(name).is_err(), "{name}");
        }
        assert!(EnvName::parse("_a1").is_ok());
        assert!(EnvName::parse("1a").is_err() && EnvName::parse("a-b").is_err() && EnvName::parse("").is_err());
        assert!(FileName::parse("tls.key").is_ok());
        assert!(FileName::parse(".a").is_err() && FileName::parse("a/b").is_err() && FileName::parse("..").is_err());
    }
}

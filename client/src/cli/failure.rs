//! Failed commands: one line of error, a hint where there is an obvious next step, and an exit code that means something.

use super::args::Format;
use cairn_client::{Error, ErrorKind};
use serde_json::json;

/// How a command ends.
pub type Outcome = Result<(), Failure>;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
}

impl Failure {
    /// Bad input found by this program.
    pub fn input(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::InvalidArgument, message: message.into(), hint: None }
    }

    /// What is there already, or is not what was expected.
    pub fn conflict(kind: ErrorKind, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: Some(hint.into()) }
    }

    /// Something that takes longer than this program waits for it.
    pub fn waited(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Timeout, message: message.into(), hint: None }
    }

    /// Replaces the general hint by one that fits the command.
    pub fn hint_when(mut self, kind: ErrorKind, hint: impl Into<String>) -> Self {
        if self.kind == kind {
            self.hint = Some(hint.into());
        }
        self
    }

    /// See `cairn --help`.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::InvalidArgument | ErrorKind::TooLarge => 2,
            ErrorKind::NotFound => 3,
            ErrorKind::Conflict | ErrorKind::AlreadyExists => 4,
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Overloaded => 5,
            ErrorKind::Unsupported | ErrorKind::ReadOnly | ErrorKind::Corrupt | ErrorKind::Internal => 1,
        }
    }

    /// Prints to standard error.
    pub fn print(&self, format: Format) {
        eprintln!("{}", self.text(format));
    }

    fn text(&self, format: Format) -> String {
        if format == Format::Json {
            let error = json!({"kind": self.kind.as_str(), "message": self.message, "hint": self.hint});
            return json!({ "error": error }).to_string();
        }
        let message = format!("error: {}", self.message);
        match &self.hint {
            Some(hint) => format!("{message}\nhint: {hint}"),
            None => message,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let hint = match &error {
            Error::Connect { address, .. } => Some(format!(
                "is `cairnd` running at {address}? start it with `cairnd`, or name another node with --node HOST:PORT or CAIRN_NODE"
            )),
            Error::Interrupted { .. } => Some(
                "the node went away, or is no Cairn node; if this was a write, look before you do it again".to_owned(),
            ),
            Error::Protocol { .. } => Some("is this a Cairn node, and of a version that fits this `cairn`?".to_owned()),
            error => general_hint(error.kind()).map(str::to_owned),
        };
        Self { kind: error.kind(), message: error.to_string(), hint }
    }
}

fn general_hint(kind: ErrorKind) -> Option<&'static str> {
    match kind {
        ErrorKind::Timeout => Some("try again, or wait longer with --timeout; a write may have taken effect"),
        ErrorKind::Overloaded | ErrorKind::Unavailable => {
            Some("try again in a moment; `cairn status` shows the cluster")
        }
        ErrorKind::ReadOnly => Some("`cairn status` says why the node takes no writes"),
        ErrorKind::Internal => Some("this is a bug: please report it with the node's log"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn exit_codes_tell_kinds_apart() {
        let codes: Vec<_> = ErrorKind::ALL
            .into_iter()
            .map(|kind| {
                let failure = Failure::from(Error::Refused { kind, message: String::new() });
                format!("{kind} {}", failure.exit_code())
            })
            .collect();
        expect![[r#"
            invalid_argument 2
            not_found 3
            already_exists 4
            conflict 4
            too_large 2
            overloaded 5
            unavailable 5
            timeout 5
            unsupported 1
            read_only 1
            corrupt 1
            internal 1"#]]
        .assert_eq(&codes.join("\n"));
    }

    #[test]
    fn a_missing_node_is_explained() {
        let reason = "Connection refused (os error 111)".to_owned();
        let failure = Failure::from(Error::Connect { address: "127.0.0.1:7700".into(), reason });
        expect![[r#"
            error: cannot connect to 127.0.0.1:7700: Connection refused (os error 111)
            hint: is `cairnd` running at 127.0.0.1:7700? start it with `cairnd`, or name another node with --node HOST:PORT or CAIRN_NODE"#]]
        .assert_eq(&failure.text(Format::Table));
    }

    #[test]
    fn programs_get_errors_as_json() {
        let failure = Failure::input("two keys").hint_when(ErrorKind::InvalidArgument, "name one");
        expect![[r#"{"error":{"hint":"name one","kind":"invalid_argument","message":"two keys"}}"#]]
            .assert_eq(&failure.text(Format::Json));
    }
}

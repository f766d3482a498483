//! Errors as container engines read them: in a file, in runc's formats.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use super::clock;

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `time="..." level=error msg="..."`
    Text,
    /// `{"level":"error","msg":"...","time":"..."}`
    Json,
}

/// Not a format's name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("--log-format {0}: give text or json")]
pub struct FormatError(String);

/// Where errors are written besides standard error.
#[derive(Clone, Debug, Default)]
pub struct Log(Option<(PathBuf, Format)>);

impl Log {
    /// A log file, if one was asked for.
    pub fn new(file: Option<PathBuf>, format: &str) -> Result<Self, FormatError> {
        let format = match format {
            "text" => Format::Text,
            "json" => Format::Json,
            other => return Err(FormatError(other.to_owned())),
        };
        Ok(Self(file.map(|file| (file, format))))
    }

    /// Adds an error. What cannot be logged is on standard error all the same.
    pub fn error(&self, message: &str) {
        let Some((file, format)) = &self.0 else { return };
        let file = OpenOptions::new().create(true).append(true).open(file);
        let _ = file.and_then(|mut file| file.write_all(line(*format, message).as_bytes()));
    }
}

fn line(format: Format, message: &str) -> String {
    let time = clock::now_rfc3339();
    match format {
        Format::Text => format!("time={time:?} level=error msg={message:?}\n"),
        Format::Json => {
            let entry = serde_json::json!({"level": "error", "msg": message, "time": time});
            format!("{entry}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_parse_whatever_the_message_holds() {
        let line = line(Format::Json, "no \"x\"\nhere");
        let entry: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&entry["level"], &entry["msg"]), (&"error".into(), &"no \"x\"\nhere".into()));
        assert!(entry["time"].as_str().unwrap().ends_with('Z'));
        assert_eq!(line.lines().count(), 1);
    }

    #[test]
    fn errors_are_appended() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let log = Log::new(Some(file.clone()), "text").unwrap();
        log.error("one");
        log.error("two");
        let text = std::fs::read_to_string(file).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.ends_with("level=error msg=\"two\"\n"), "{text}");
        assert!(Log::new(None, "xml").is_err());
    }
}

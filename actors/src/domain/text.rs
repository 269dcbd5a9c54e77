//! Texts that clients give, each a type of its own that checks its bound where it is made.

/// Checks a length in bytes, at least 1.
///
/// # Errors
/// When `text` is empty or longer than `bytes_max`.
pub fn check_bytes(text: &str, bytes_max: usize) -> Result<(), String> {
    match text.len() {
        bytes if (1..=bytes_max).contains(&bytes) => Ok(()),
        bytes => Err(format!("must be 1 to {bytes_max} bytes of UTF-8, is {bytes}")),
    }
}

/// Defines a text that `$check` has found right. Encoded, and in `Debug`, it is the text alone.
///
/// `Deserialize` does not check: it reads logs and files, which earlier versions wrote by their rules.
/// Who reads a client's text parses it.
macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// The text inside.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            /// Says what is wrong as a sentence without its subject.
            fn try_from(text: String) -> Result<Self, String> {
                $check(&text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Debug::fmt(&self.0, f)
            }
        }

        #[cfg(test)]
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self::try_from(text.to_owned()).expect("a text that is right")
            }
        }
    };
}
pub(super) use checked_text;

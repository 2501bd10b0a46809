//! Reading JSON strictly: every field is asked for by name and kind, one that nobody asked for is an error, and every
//! error names the field's path.

use serde_json::{Map, Value};

/// What is wrong with which field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct ConfigError {
    /// Path of the field, as `disks[0].path`; empty for the whole.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
    /// Known here but not done by this VMM, rather than wrong.
    pub unsupported: bool,
}

impl ConfigError {
    /// A bad value.
    pub fn new(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            problem: problem.into(),
            unsupported: false,
        }
    }
}

/// An object whose fields are taken one by one.
#[derive(Debug)]
pub struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
    known: Vec<&'static str>,
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl<'a> Fields<'a> {
    /// The fields of `value` at `path`.
    ///
    /// # Errors
    /// When it is no object.
    pub fn new(path: impl Into<String>, value: &'a Value) -> Result<Self, ConfigError> {
        let path = path.into();
        match value {
            Value::Object(map) => Ok(Self {
                path,
                map,
                known: Vec::new(),
            }),
            other => Err(ConfigError::new(
                path,
                format!("expected an object, found {}", kind(other)),
            )),
        }
    }

    /// Path of a field of this object.
    #[must_use]
    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// A problem with a field.
    #[must_use]
    pub fn problem(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        ConfigError::new(self.path(key), problem)
    }

    fn take(&mut self, key: &'static str) -> Option<&'a Value> {
        self.known.push(key);
        // Cloud Hypervisor's own clients send unset optionals as null.
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn expected<T>(&self, key: &str, what: &str, value: &Value) -> Result<T, ConfigError> {
        Err(self.problem(key, format!("expected {what}, found {}", kind(value))))
    }

    /// A truth value.
    ///
    /// # Errors
    /// When it is something else.
    pub fn flag(&mut self, key: &'static str) -> Result<Option<bool>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => self.expected(key, "a truth value", other),
        }
    }

    /// A whole number of `min` to `max`.
    ///
    /// # Errors
    /// When it is something else.
    pub fn number(
        &mut self,
        key: &'static str,
        min: u64,
        max: u64,
    ) -> Result<Option<u64>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) if (min..=max).contains(&number) => Ok(Some(number)),
                _ => Err(self.problem(
                    key,
                    format!("expected a whole number from {min} to {max}, found {value}"),
                )),
            },
        }
    }

    /// A string of at most `max` bytes.
    ///
    /// # Errors
    /// When it is something else.
    pub fn text(&mut self, key: &'static str, max: usize) -> Result<Option<&'a str>, ConfigError> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.contains('\0') => {
                Err(self.problem(key, "holds a zero byte"))
            }
            Some(Value::String(text)) if text.len() > max => Err(self.problem(
                key,
                format!("is {} bytes long, at most {max} are allowed", text.len()),
            )),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => self.expected(key, "a string", other),
        }
    }

    /// An object.
    ///
    /// # Errors
    /// When it is something else.
    pub fn object(&mut self, key: &'static str) -> Result<Option<Fields<'a>>, ConfigError> {
        let path = self.path(key);
        self.take(key)
            .map(|value| Fields::new(path, value))
            .transpose()
    }

    /// An array of at most `max` things, each with its path.
    ///
    /// # Errors
    /// When it is something else.
    pub fn array(
        &mut self,
        key: &'static str,
        max: usize,
    ) -> Result<Vec<(String, &'a Value)>, ConfigError> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) if items.len() > max => Err(self.problem(
                key,
                format!("has {} entries, at most {max} are supported", items.len()),
            )),
            Some(Value::Array(items)) => {
                let path = self.path(key);
                Ok(items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| (format!("{path}[{index}]"), item))
                    .collect())
            }
            Some(other) => self.expected(key, "an array", other),
        }
    }

    /// Any value, for whoever reads it further.
    pub fn value(&mut self, key: &'static str) -> Option<&'a Value> {
        self.take(key)
    }

    /// A field of Cloud Hypervisor's that this VMM does not do: fine while it asks for nothing.
    ///
    /// # Errors
    /// When it does ask.
    pub fn unsupported(&mut self, key: &'static str) -> Result<(), ConfigError> {
        let asks = match self.take(key) {
            None | Some(Value::Bool(false)) => false,
            Some(Value::Array(items)) => !items.is_empty(),
            Some(_) => true,
        };
        if asks {
            let mut error = self.problem(key, "is not supported");
            error.unsupported = true;
            return Err(error);
        }
        Ok(())
    }

    /// Every field was asked for.
    ///
    /// # Errors
    /// When one was not: it is unknown.
    pub fn finish(self) -> Result<(), ConfigError> {
        match self
            .map
            .keys()
            .find(|key| !self.known.contains(&key.as_str()))
        {
            None => Ok(()),
            Some(key) => {
                let shown: String = key.chars().take(64).collect();
                Err(self.problem(
                    &shown,
                    format!("unknown field; known are {}", self.known.join(", ")),
                ))
            }
        }
    }
}

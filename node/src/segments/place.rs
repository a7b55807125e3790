//! A URL and the options around it as an object store, or a sentence why not. Nobody is asked.

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, ObjectStoreScheme, RetryConfig};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// How often one request is sent again, and for how long: a connection that broke, a server that is overloaded. What
/// lasts longer is for who asked.
const RETRIES_MAX: usize = 3;
const RETRY_FOR: Duration = Duration::from_secs(20);
/// What a URL may look like.
const FORMS: &str = "give `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `file:///DIRECTORY`";

/// A folder in a store.
#[derive(Debug)]
pub struct Place {
    /// For people: the URL, and the endpoint where one is set.
    pub name: String,
    pub store: Arc<dyn ObjectStore>,
    pub prefix: Path,
    /// The store once more, when it is the file system.
    pub files: Option<LocalFileSystem>,
}

/// - `vars`: the environment, of which `AWS_…`, `GOOGLE_…` or `AZURE_…` are options
///
/// # Errors
/// A sentence with the fix.
pub fn place(text: &str, vars: &[(String, String)]) -> Result<Place, String> {
    let url: Url = text.parse().map_err(|error| format!("`{text}` is not a URL ({error}); {FORMS}"))?;
    if url.password().is_some() || (!url.username().is_empty() && !url.scheme().starts_with("abfs")) {
        return Err(
            "a URL with a user or a password would be in every log; credentials come from the environment, as \
                    `AWS_ACCESS_KEY_ID` does"
                .to_owned(),
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("`{text}` has options behind `?` or `#`; they come from the environment; {FORMS}"));
    }
    let unknown = || format!("`{text}` is no object store that keeps segments; {FORMS}");
    let (scheme, prefix) = ObjectStoreScheme::parse(&url).map_err(|_| unknown())?;
    if scheme != ObjectStoreScheme::Local && url.host_str().is_none_or(str::is_empty) {
        return Err(unknown());
    }
    let mut name = format!("`{}`", text.trim_end_matches('/'));
    let refused = |error: object_store::Error| format!("`{text}`: {error}");
    let retries = RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_FOR, ..RetryConfig::default() };
    let store: Arc<dyn ObjectStore> = match scheme {
        ObjectStoreScheme::Local if prefix.is_root() => return Err(format!("`{text}` is the root directory; {FORMS}")),
        ObjectStoreScheme::Local => {
            let files = LocalFileSystem::new();
            return Ok(Place { name, store: Arc::new(files.clone()), prefix, files: Some(files) });
        }
        ObjectStoreScheme::AmazonS3 => {
            let builder = AmazonS3Builder::new().with_url(text).with_retry(retries);
            let builder = options::<AmazonS3ConfigKey>(vars, "AWS_")
                .fold(builder, |builder, (key, value)| builder.with_config(key, value));
            let endpoints = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint];
            if let Some(endpoint) = endpoints.iter().find_map(|key| builder.get_config_value(key)) {
                let allowed = builder.get_config_value(&AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp));
                if endpoint.starts_with("http:") && allowed.is_none_or(|it| it == "false") {
                    return Err(format!(
                        "`AWS_ENDPOINT_URL` is `{endpoint}`, where rows would travel unencrypted; use https, or allow it \
                         with `AWS_ALLOW_HTTP=true`"
                    ));
                }
                name = format!("{name} at `{endpoint}`");
            }
            Arc::new(builder.build().map_err(refused)?)
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let builder = GoogleCloudStorageBuilder::new().with_url(text).with_retry(retries);
            let builder = options::<GoogleConfigKey>(vars, "GOOGLE_")
                .fold(builder, |builder, (key, value)| builder.with_config(key, value));
            Arc::new(builder.build().map_err(refused)?)
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let builder = MicrosoftAzureBuilder::new().with_url(text).with_retry(retries);
            let builder = options::<AzureConfigKey>(vars, "AZURE_")
                .fold(builder, |builder, (key, value)| builder.with_config(key, value));
            Arc::new(builder.build().map_err(refused)?)
        }
        // Memory, which keeps nothing, and plain HTTP servers, which do not take large files in parts.
        _ => return Err(unknown()),
    };
    Ok(Place { name, store, prefix, files: None })
}

/// The variables that are options of one kind of store. Others may begin alike.
fn options<Key: FromStr>(vars: &[(String, String)], begin: &str) -> impl Iterator<Item = (Key, String)> {
    let ours = vars.iter().filter(move |(name, _)| name.starts_with(begin));
    ours.filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str, vars: &[(&str, &str)]) -> String {
        let vars: Vec<_> = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        place(url, &vars).err().unwrap_or_default()
    }

    #[test]
    fn stores_and_their_prefixes() {
        let check = |url: &str, prefix: &str| {
            let found = place(url, &[]).unwrap();
            assert_eq!((found.prefix.as_ref(), found.files.is_some()), (prefix, url.starts_with("file")), "{url}");
        };
        check("file:///mnt/share/cairn/", "mnt/share/cairn");
        check("s3://bucket", "");
        check("s3://bucket/a/b", "a/b");
        check("https://bucket.s3.eu-west-1.amazonaws.com/a", "a");
        check("gs://bucket/a", "a");
        check("abfss://files@account.dfs.core.windows.net/a", "a");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let check = |url: &str, part: &str| {
            let said = refusal(url, &[]);
            assert!(said.contains(part), "{url}: {said:?} instead of {part:?}");
        };
        check("bucket/prefix", "`bucket/prefix` is not a URL");
        check(
            "ftp://bucket/prefix",
            "`ftp://bucket/prefix` is no object store that keeps segments; give `s3://BUCKET/PREFIX`",
        );
        check("s3:///prefix", "is no object store");
        check("memory:///", "is no object store that keeps segments");
        check("http://host/folder", "is no object store that keeps segments");
        check("file:///", "is the root directory");
        check("file://host/folder", "is no object store");
        check("s3://key:secret@bucket/a", "credentials come from the environment");
        check("s3://bucket/a?region=x", "options behind `?`");
        check("az://container/a", "Account");
        assert!(!refusal("s3://key:secret@bucket/a", &[]).contains("secret@"));
    }

    #[test]
    fn options_come_from_the_environment() {
        let plain = ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000");
        assert!(refusal("s3://bucket", &[plain]).contains("`AWS_ALLOW_HTTP=true`"));
        assert_eq!(refusal("s3://bucket", &[plain, ("AWS_ALLOW_HTTP", "true"), ("AWS_PROFILE", "x")]), "");
        assert!(refusal("s3://bucket", &[("AWS_ACCESS_KEY_ID", "x")]).contains("SecretAccessKey"));
        assert_eq!(refusal("az://container/a", &[("AZURE_STORAGE_ACCOUNT_NAME", "x")]), "");
        let vars = [(plain.0.to_owned(), plain.1.to_owned()), ("AWS_ALLOW_HTTP".to_owned(), "true".to_owned())];
        assert_eq!(place("s3://bucket/a/", &vars).unwrap().name, "`s3://bucket/a` at `http://127.0.0.1:9000`");
    }
}

//! Another issuing CA under the same root: agents notice nothing, since they believe the root.

use std::path::PathBuf;

use crate::CaError;
use crate::authority::generation::{self, Brought, Names};
use crate::authority::made::Made;
use crate::config::Config;
use crate::ends::Ends;
use crate::keys;
use crate::operate::existing;
use crate::storage::{StateStore as _, Storage};

/// Where the next issuing CA comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// It is made, and signed with the root's key: the one of this file, or the one that lies in the state directory. A file's
    /// is only read.
    Root(Option<PathBuf>),
    /// It was signed where the root's key is.
    Brought {
        /// Its certificate (PEM).
        cert: PathBuf,
        /// Its key (PKCS#8 in PEM).
        key: PathBuf,
    },
}

/// Puts another issuing CA in the place of the one that there is, whose key is destroyed. What that one has issued stays good.
/// Works whether the CA runs or not.
///
/// # Errors
/// [`CaError`].
pub fn replace(config: &Config, source: &Source) -> Result<Ends, CaError> {
    let storage = existing(config)?;
    let roots = storage.state()?.roots().clone();
    if roots.rotation().is_some() {
        return Err(CaError::Rotation(
            "the root is being replaced: first end that, by `mantle ca rotate finish` or `abort`".to_owned(),
        ));
    }
    let made = made(&storage, config, roots.current, source)?;
    let (gone, ends) = storage.change(|state| {
        if *state.roots() != roots {
            return Err(CaError::Rotation("somebody else has changed the roots meanwhile: try again".to_owned()));
        }
        let next = roots.newest + 1;
        made.with_root_key_of(&storage, roots.current)?.write(&storage, next)?;
        // Whatever fails, fails before the state is changed.
        let ends = generation::ends(&storage, next)?;
        Ok((state.replace_current(next), ends))
    })??;
    storage.exclusively(|| generation::remove(&storage, gone))?;
    Ok(ends)
}

fn made(storage: &Storage, config: &Config, current: u32, source: &Source) -> Result<Made, CaError> {
    let (root, passphrase) = (generation::root(storage, current)?, storage.passphrase());
    let names = Names::of(current);
    let key = match source {
        Source::Brought { cert, key } => {
            let brought =
                Brought { root: storage.path(&names.root), issuing_cert: cert.clone(), issuing_key: key.clone() };
            return Made::bring(&config.trust_domain, &brought, passphrase);
        }
        Source::Root(Some(path)) => keys::bring(path, passphrase)?,
        Source::Root(None) => keys::read(storage, &names.root_key)?.ok_or_else(|| {
            CaError::Refused(
                "the root's key is not in `state_dir`: name its file by --root-key, or have an issuing CA signed where it is, and \
                 bring that by --issuing-cert and --issuing-key"
                    .to_owned(),
            )
        })?,
    };
    Made::under(root, key, &config.trust_domain, passphrase)
}

#[cfg(test)]
mod tests;

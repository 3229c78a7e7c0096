//! Deleting a version: a look first, then the request, and not long after.

use aws_sdk_s3::config::ConfigBag;
use aws_sdk_s3::config::Intercept;
use aws_sdk_s3::config::RuntimeComponents;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::error::BoxError;

use super::Failure;
use super::S3Store;
use super::error::Subject;
use crate::name::ETag;
use crate::name::ObjectKey;
use crate::store::Expect;
use crate::store::ObjectStore;
use crate::store::StoreError;
use crate::store::patience::Asked;
use crate::store::patience::Extra;

/// Keeps a deletion from being signed long after what it deletes was looked at: from then on its signature,
/// which the server finds too old after a quarter of an hour, bounds when it can be carried out.
#[derive(Debug)]
struct OnlySoon {
    looked: Asked,
    key: ObjectKey,
}

impl Intercept for OnlySoon {
    fn name(&self) -> &'static str {
        "OnlySoon"
    }

    fn read_before_signing(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.looked.check(&self.key).map_err(BoxError::from)
    }
}

impl S3Store {
    pub(super) async fn delete_version(&self, key: &ObjectKey, etag: &ETag) -> Result<(), StoreError> {
        let looked = Asked::now(&self.time);
        // Looked at first for the servers that ignore the condition, sent for those that honour it.
        match self.head(key).await {
            Ok(meta) if meta.etag == *etag => {}
            Ok(_) => return Err(StoreError::Changed { key: key.clone() }),
            Err(StoreError::NotFound { .. }) => return Ok(()),
            Err(err) => return Err(err),
        }
        let expect = Expect::Version(etag.clone());
        let subject = Subject::Write(key, &expect);
        let client = self.client().await?;
        let (_, if_match) = self.condition(&expect);
        let call = |if_match| {
            let only_soon = OnlySoon { looked: looked.clone(), key: key.clone() };
            let request = client.delete_object().bucket(&self.bucket).key(key.as_str());
            request.set_if_match(if_match).customize().interceptor(only_soon).send()
        };
        match self.answer(subject, Extra::Nothing, call(if_match)).await {
            Ok(_) => Ok(()),
            // "Not implemented" speaks of the condition, not of deleting.
            Err(Failure { status: Some(501), .. }) => {
                self.answer(subject, Extra::Nothing, call(None)).await?;
                Ok(())
            }
            // Gone by now, or another version: a look tells which.
            Err(Failure { error: StoreError::Changed { .. }, .. }) => match self.head(key).await {
                Err(StoreError::NotFound { .. }) => Ok(()),
                Ok(_) | Err(_) => Err(StoreError::Changed { key: key.clone() }),
            },
            Err(failure) => Err(failure.error),
        }
    }
}

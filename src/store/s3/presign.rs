//! URLs that carry their own signature, for whoever has no key.

use std::time::Duration;

use aws_sdk_s3::presigning::PresigningConfig;

use crate::name::ObjectKey;
use crate::store::Expect;
use crate::store::StoreError;
use crate::store::s3::S3Store;
use crate::store::s3::error;
use crate::store::s3::error::Subject;
use crate::store::s3::error::chain;

impl S3Store {
    /// A URL by which whoever has it can read an object, until it expires; without any request but those
    /// for the region and the credentials.
    ///
    /// # Errors
    /// [`StoreError::Denied`] without credentials; [`StoreError::Rejected`] for more than a week.
    pub async fn presign_get(&self, key: &ObjectKey, expires: Duration) -> Result<String, StoreError> {
        let config = presigning(key, expires)?;
        let call = self.client().await?.get_object().bucket(&self.bucket).key(key.as_str());
        let signed = call.presigned(config).await;
        let signed = signed.map_err(|err| error::from_sdk(&self.bucket, Subject::Read(key), err))?;
        Ok(signed.uri().to_owned())
    }

    /// A URL by which whoever has it can create an object where nothing is, until it expires: it is signed
    /// with `If-None-Match: *`, and the server takes it only with that header.
    ///
    /// # Errors
    /// As [`Self::presign_get`].
    pub async fn presign_put(&self, key: &ObjectKey, expires: Duration) -> Result<String, StoreError> {
        let config = presigning(key, expires)?;
        let call =
            self.client().await?.put_object().bucket(&self.bucket).key(key.as_str()).if_none_match("*");
        let signed = call.presigned(config).await;
        let subject = Subject::Write(key, &Expect::Absent);
        let signed = signed.map_err(|err| error::from_sdk(&self.bucket, subject, err))?;
        Ok(signed.uri().to_owned())
    }
}

fn presigning(key: &ObjectKey, expires: Duration) -> Result<PresigningConfig, StoreError> {
    PresigningConfig::expires_in(expires)
        .map_err(|err| StoreError::Rejected { key: key.to_string(), reason: chain(&err) })
}

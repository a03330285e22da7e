//! Streams that keep to a rate.

use std::time::Duration;

use thinbak_proto::Failed;
use tokio::time::Instant;

use super::{Batch, Content, Source};

/// Bytes in a second at most, counted from the first one on.
#[derive(Debug, Default)]
pub struct Rate {
    bytes_per_second: u64,
    /// When all that was spent has had its time.
    paid: Option<Instant>,
}

impl Rate {
    /// So many bytes in a second; 0: no limit.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, paid: None }
    }

    /// Waits as long as `bytes` that were just moved may take. Time in which less was moved is not made up for.
    pub async fn spend(&mut self, bytes: u64) {
        if let Some(paid) = self.paid_at(bytes, Instant::now()) {
            tokio::time::sleep_until(paid).await;
        }
    }

    /// When `bytes` that are moved by `now` have had their time.
    fn paid_at(&mut self, bytes: u64, now: Instant) -> Option<Instant> {
        if self.bytes_per_second == 0 || bytes == 0 {
            return None;
        }
        let begin = self.paid.map_or(now, |paid| paid.max(now));
        self.paid = Some(begin + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64));
        self.paid
    }
}

/// A source of which no more than so much data is taken in a second.
#[derive(Debug)]
pub struct Paced<S> {
    source: S,
    rate: Rate,
}

impl<S> Paced<S> {
    /// At most so many bytes in a second; 0: no limit.
    pub fn new(source: S, bytes_per_second: u64) -> Self {
        Self { source, rate: Rate::new(bytes_per_second) }
    }

    /// The source itself.
    pub fn source(&self) -> &S {
        &self.source
    }
}

impl<S: Source> Source for Paced<S> {
    async fn next(&mut self) -> Result<Option<Batch>, Failed> {
        let batch = self.source.next().await?;
        let data = batch.iter().flatten().map(|extent| match &extent.content {
            Content::Data(bytes) => bytes.len() as u64,
            Content::Zero(_) | Content::Unmapped(_) => 0,
        });
        self.rate.spend(data.sum()).await;
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{super::Extent, *};

    /// As many batches of 1000 bytes of data and 5000 of nothing.
    struct Batches(usize);

    impl Source for Batches {
        async fn next(&mut self) -> Result<Option<Batch>, Failed> {
            let Some(left) = self.0.checked_sub(1) else { return Ok(None) };
            self.0 = left;
            let data = Extent { offset: 0, content: Content::Data(Bytes::from(vec![1; 1000])) };
            Ok(Some(vec![data, Extent { offset: 1000, content: Content::Unmapped(5000) }]))
        }
    }

    #[tokio::test]
    async fn data_takes_its_time_and_what_is_not_read_takes_none() {
        let (begin, mut paced) = (Instant::now(), Paced::new(Batches(20), 500_000));
        while paced.next().await.unwrap().is_some() {}
        assert!(begin.elapsed() >= Duration::from_millis(40));
    }

    #[test]
    fn what_is_spent_adds_up_and_what_was_not_used_is_not_made_up_for() {
        let begin = Instant::now();
        let seconds = Duration::from_secs;
        let mut rate = Rate::new(100);
        assert_eq!(rate.paid_at(100, begin), Some(begin + seconds(1)));
        assert_eq!(rate.paid_at(200, begin), Some(begin + seconds(3)));
        assert_eq!(rate.paid_at(0, begin), None);
        assert_eq!(rate.paid_at(100, begin + seconds(60)), Some(begin + seconds(61)));
        assert_eq!(Rate::new(0).paid_at(100, begin), None);
    }
}

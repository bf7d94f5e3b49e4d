use std::time::Duration;

/// The measured duration of calls, smoothed, and the patience that follows from it (the estimator of RFC 6298).
#[derive(Debug, Default)]
pub(super) struct Rtt {
    measured: Option<Measured>,
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    smoothed: Duration,
    deviation: Duration,
}

impl Rtt {
    /// Patience while nothing has been measured.
    pub(super) const FIRST: Duration = Duration::from_millis(1500);
    const MIN: Duration = Duration::from_millis(500);
    /// The library gives up a call over one-hop routes after 5 s.
    const MAX: Duration = Duration::from_secs(5);

    /// Notes that a call was answered after `sample`.
    pub(super) fn note(&mut self, sample: Duration) {
        let measured = match self.measured {
            None => Measured { smoothed: sample, deviation: sample / 2 },
            Some(Measured { smoothed, deviation }) => Measured {
                smoothed: (smoothed * 7 + sample) / 8,
                deviation: (deviation * 3 + smoothed.abs_diff(sample)) / 4,
            },
        };
        self.measured = Some(measured);
    }

    /// How long to wait for an answer before the next route is tried as well.
    pub(super) fn patience(&self) -> Duration {
        let patience = self.measured.map_or(Self::FIRST, |m| m.smoothed + m.deviation * 4);
        patience.clamp(Self::MIN, Self::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(samples: impl IntoIterator<Item = u64>) -> Rtt {
        let mut rtt = Rtt::default();
        for sample in samples {
            rtt.note(Duration::from_millis(sample));
        }
        rtt
    }

    #[test]
    fn patience_follows_the_measurements() {
        assert_eq!(Rtt::default().patience(), Rtt::FIRST);
        assert_eq!(after([2; 50]).patience(), Rtt::MIN);
        let slow = after([1000; 50]).patience();
        assert!((1000..1200).contains(&slow.as_millis()), "{slow:?}");
        let varying = after((0..50).map(|n| 600 + (n % 2) * 800)).patience();
        assert!(varying > Duration::from_millis(1400), "{varying:?}");
    }

    #[test]
    fn patience_is_bounded() {
        assert_eq!(after([60_000]).patience(), Rtt::MAX);
    }
}

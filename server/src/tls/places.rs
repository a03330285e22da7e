//! How many connections there may be.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use parking_lot::Mutex;

/// Connections that are served at one time; more are closed at once.
const MAX_CONNECTIONS: usize = 512;
/// Of one address, over TLS.
const MAX_OF_ADDRESS: usize = 128;

/// The connections that are served.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(Arc<Mutex<Taken>>);

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    /// Only addresses that have one.
    of_address: HashMap<IpAddr, usize>,
}

/// One of the connections that there may be, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    address: IpAddr,
}

impl Places {
    /// Whether an address has as many as it may have.
    pub(super) fn is_full(&self, address: IpAddr) -> bool {
        self.0.lock().of_address.get(&address).is_some_and(|count| *count >= MAX_OF_ADDRESS)
    }

    /// A place, unless there is none or the address has as many as it may have.
    pub(super) fn take(&self, address: IpAddr) -> Option<Place> {
        self.take_of(address, MAX_OF_ADDRESS)
    }

    /// A place, unless there is none.
    pub(super) fn take_any(&self, address: IpAddr) -> Option<Place> {
        self.take_of(address, MAX_CONNECTIONS)
    }

    fn take_of(&self, address: IpAddr, max: usize) -> Option<Place> {
        let mut taken = self.0.lock();
        let count = taken.of_address.get(&address).copied().unwrap_or_default();
        if taken.total >= MAX_CONNECTIONS || count >= max {
            return None;
        }
        taken.total += 1;
        taken.of_address.insert(address, count + 1);
        Some(Place { places: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock();
        taken.total -= 1;
        if let Some(count) = taken.of_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.of_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_takes_its_share_and_gives_it_back() {
        let [greedy, other] = [1, 2].map(|last| IpAddr::from([10, 0, 0, last]));
        let places = Places::default();
        let mut held: Vec<_> = std::iter::from_fn(|| places.take(greedy)).collect();
        assert_eq!(held.len(), MAX_OF_ADDRESS);
        assert!(places.is_full(greedy) && !places.is_full(other));
        assert!(places.take(other).is_some());
        held.pop();
        assert!(places.take(greedy).is_some());
        drop(held);
        let taken = places.0.lock();
        assert_eq!((taken.of_address.len(), taken.total), (0, 0));
    }

    #[test]
    fn all_addresses_together_take_what_there_is() {
        let places = Places::default();
        let mut held = Vec::new();
        for last in 0..5 {
            held.extend(std::iter::from_fn(|| places.take(IpAddr::from([10, 0, 0, last]))));
        }
        assert_eq!(held.len(), MAX_CONNECTIONS);
        assert!(places.take_any(IpAddr::from([10, 0, 0, 9])).is_none());
    }
}

//! Connections by token: a place and how often it was given away, so that news of a dead one reaches nobody.

use crate::connection::{Connection, Side};

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    connection: Option<Connection>,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    places: Vec<Place>,
    free: Vec<u32>,
    host: usize,
    guest: usize,
}

impl Table {
    /// Connections that this side opened.
    pub fn len(&self, side: Side) -> usize {
        match side {
            Side::Host => self.host,
            Side::Guest => self.guest,
        }
    }

    /// Puts a connection, made for the token that it gets, in the table.
    pub fn insert(&mut self, make: impl FnOnce(u64) -> Connection) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            // `Limits` counts in thousands.
            u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX)
        });
        let place = &mut self.places[index as usize];
        let token = u64::from(place.generation) << 32 | u64::from(index);
        let connection = make(token);
        *self.count(connection.side) += 1;
        self.places[index as usize].connection = Some(connection);
        token
    }

    pub fn get(&mut self, token: u64) -> Option<&mut Connection> {
        let (index, generation) = split(token);
        self.places
            .get_mut(index)
            .filter(|place| place.generation == generation)?
            .connection
            .as_mut()
    }

    pub fn remove(&mut self, token: u64) -> Option<Connection> {
        let (index, generation) = split(token);
        let place = self
            .places
            .get_mut(index)
            .filter(|place| place.generation == generation)?;
        let connection = place.connection.take()?;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(u32::try_from(index).unwrap_or(u32::MAX));
        *self.count(connection.side) -= 1;
        Some(connection)
    }

    /// The tokens of all that are there now.
    pub fn tokens(&self) -> Vec<u64> {
        self.places
            .iter()
            .filter_map(|place| place.connection.as_ref().map(Connection::token))
            .collect()
    }

    fn count(&mut self, side: Side) -> &mut usize {
        match side {
            Side::Host => &mut self.host,
            Side::Guest => &mut self.guest,
        }
    }
}

fn split(token: u64) -> (usize, u32) {
    let [a, b, c, d, e, f, g, h] = token.to_be_bytes();
    (
        u32::from_be_bytes([e, f, g, h]) as usize,
        u32::from_be_bytes([a, b, c, d]),
    )
}

// Threads that make vectors, strings, boxes and maps, pass them to each other to be freed there, and exit; others are born.
// Prints one line that depends on all of it.
use std::collections::HashMap;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::thread;

struct Random(u64);
impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

enum Thing {
    Bytes(Vec<u8>),
    Text(String),
    Map(HashMap<u64, Box<[u64; 5]>>),
}

fn make(random: &mut Random) -> Thing {
    match random.below(10) {
        0 => Thing::Map((0..random.below(60)).map(|key| (key, Box::new([key; 5]))).collect()),
        1..=4 => Thing::Text("text ".repeat(random.below(40) as usize)),
        5 => Thing::Bytes(vec![7; 1 << (10 + random.below(12))]),
        _ => {
            let mut grown = Vec::new();
            for n in 0..random.below(2000) {
                grown.push(n as u8);
            }
            Thing::Bytes(grown)
        }
    }
}

fn weigh(thing: &Thing) -> u64 {
    match thing {
        Thing::Bytes(bytes) => bytes.iter().step_by(61).map(|&byte| byte as u64 + 1).sum(),
        Thing::Text(text) => text.len() as u64,
        Thing::Map(map) => map.values().map(|five| five[4]).sum(),
    }
}

fn work(seed: u64, inbox: Receiver<Thing>, next: Sender<Thing>) -> u64 {
    let mut random = Random(seed * 2_654_435_769 + 1);
    let mut sum = 0u64;
    for _ in 0..4000 {
        let thing = make(&mut random);
        sum = sum.wrapping_add(weigh(&thing));
        let _ = next.send(thing);
        while let Ok(thing) = inbox.try_recv() {
            sum = sum.wrapping_add(weigh(&thing).wrapping_mul(3)); // freed here, made elsewhere
        }
    }
    drop(next);
    for thing in inbox {
        sum = sum.wrapping_add(weigh(&thing).wrapping_mul(3));
    }
    sum
}

fn main() {
    let mut total = 0u64;
    for round in 0..3 {
        let (senders, mut inboxes): (Vec<_>, Vec<_>) = (0..8).map(|_| channel()).map(|(s, r)| (s, Some(r))).unzip();
        let threads: Vec<_> = (0..8usize)
            .map(|n| {
                let (inbox, next) = (inboxes[n].take().unwrap(), senders[(n + 1) % 8].clone());
                thread::spawn(move || work(round * 8 + n as u64 + 1, inbox, next))
            })
            .collect();
        drop(senders);
        for thread in threads {
            total = total.wrapping_add(thread.join().unwrap());
        }
    }
    println!("{total}");
}

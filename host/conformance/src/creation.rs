//! Tests that an instance can be created, which nearly every other test requires.

use crate::gate::TOPIC;
use crate::setup::Setup;
use crate::subject::Subject;
use crate::test::{Needs, Test, Verdict};

pub(super) const CREATES: Test = TOPIC
    .test(
        "creates",
        "valid settings create an instance of each kind",
        creates,
    )
    .needs(Needs::Library);

fn creates(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    for maker in subject.makers() {
        let created = subject.create_from(maker, subject.config.as_bytes());
        // The instance is not destroyed here. Another test checks that an instance can be destroyed before
        // any call.
        std::mem::forget(created.result?);
    }
    Ok(())
}

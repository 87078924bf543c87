//! Whether there is an instance at all, which nearly every other test needs.

use crate::gate::TOPIC;
use crate::setup::Setup;
use crate::subject::Subject;
use crate::test::{Needs, Test, Verdict};

pub(super) const CREATES: Test = TOPIC
    .test(
        "creates",
        "good settings make an instance of each kind",
        creates,
    )
    .needs(Needs::Library);

fn creates(setup: &Setup) -> Verdict {
    let subject = Subject::load(setup)?;
    for maker in subject.makers() {
        let created = subject.create_from(maker, subject.config.as_bytes());
        // That it can be destroyed without a call is another test's.
        std::mem::forget(created.result?);
    }
    Ok(())
}

use std::borrow::Cow;

use host_core::{GroupsRequest, ParamGroup, ParamGroups, Result};

use super::protocol::{Call, Reply};
use super::remote::Remote;

/// A plugin that assigns parameter groups. It runs in a child process.
#[derive(Debug)]
pub(crate) struct RemoteParamGroups(pub(crate) Remote);

impl ParamGroups for RemoteParamGroups {
    fn id(&self) -> &str {
        self.0.id()
    }

    fn group(&mut self, request: GroupsRequest<'_>) -> Result<(Vec<ParamGroup>, Vec<String>)> {
        let call = Call::Group {
            params: Cow::Borrowed(request.params),
            weight_decay: request.weight_decay,
        };
        match self.0.ask(&call, &[])? {
            Reply::Groups(groups, warnings) => Ok((groups, warnings)),
            _ => Err(self.0.wrong_reply(call.name())),
        }
    }
}

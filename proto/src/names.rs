//! The values of the domain's enums beside those of the API, each pair said once.

use tcptracer_event::{Kind, LossSource, Reason, Role, Source};

use crate::v1;

/// Both have the same names; where the domain has `Unknown`, the API has `Unspecified`.
macro_rules! pairs {
    ($domain:ident, $api:ident: $($name:ident),+ $(; $unknown:ident)?) => {
        impl From<$domain> for v1::$api {
            fn from(value: $domain) -> Self {
                match value {
                    $($domain::$name => Self::$name,)+
                    $($domain::$unknown => Self::Unspecified,)?
                }
            }
        }

        impl v1::$api {
            /// As the domain has it; `None` if it does not know it.
            pub const fn known(self) -> Option<$domain> {
                match self {
                    $(Self::$name => Some($domain::$name),)+
                    Self::Unspecified => None,
                }
            }
        }
    };
}

// Open connections are listed, and are no event.
pairs!(Kind, EventType: Connect, Accept, Close, Failed; Existing);
pairs!(Role, Role: Client, Server; Unknown);
pairs!(Source, ProcessSource: Connect, Accept, Listener, Snapshot, Closer; Unknown);
pairs!(Reason, CloseReason: Local, Remote, ResetLocal, ResetRemote, Timeout, Abort; Unknown);
pairs!(LossSource, LossSource: Ring, Connections, Untracked, Agent, Subscriber, History, FilterMap);

// The C ABI between the host and its plugins, version 1. Generated from the Rust crate in this folder:
// do not edit, run `make bless`.
//
// A plugin is a shared library that exports one function, host_plugin_entry_v1, and contains a JSON
// manifest in the ELF section HOST_PLUGIN_MANIFEST_SECTION. The host reads the manifest before it runs
// any code of the plugin. Rules for all types:
//
// Versions: the major version is part of the entry symbol's name. A minor version only appends fields.
// Every struct except HostStr and the DLPack structs starts with struct_size. Read a field f only if
// offsetof(f) + sizeof(f) <= struct_size.
//
// Ownership: each side frees only its own allocations. Arguments are borrowed until the call returns,
// unless a comment says otherwise. Results are passed only to the host's callbacks, which copy them.
//
// Strings are UTF-8, with pointer and length, and without a terminating zero.
//
// Threads: [main]: the thread that initialized the host. [inst]: one thread at a time per instance,
// possibly another thread for each call. [any]: any thread at any time. [worker]: a thread of the
// instance, which may block.
//
// Faults: no panic, exception or longjmp may leave a plugin. After HOST_PANIC the host only destroys
// the instance.
//
// A plugin must not link libtorch, and must not change signals, the environment or the working
// directory, or call exit.

#ifndef HOST_PLUGIN_H
#define HOST_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// The only symbol that a plugin exports. Its type is HostPluginEntry.
#define HOST_PLUGIN_ENTRY_SYMBOL "host_plugin_entry_v1"

// The ELF section that holds the plugin's manifest: one JSON object in UTF-8.
//
//   { "abi": [1, 0], "id": "perplexity", "version": "0.1.0", "description": "...",
//     "kinds": ["metric"], "needs": ["loss_sum"], "devices": ["cpu"], "config": { JSON Schema } }
//
// kinds: param_groups, metric, checkpoint_sink, observer. needs and devices apply to metrics; devices
// can contain cpu and cuda, the default is ["cpu"]. events applies to observers: run_started,
// superseded, metrics, checkpoint_written, checkpoint_failed, delivery, plugin_fault, request, warning,
// run_finished. The observer receives only these kinds of events; the default is all. Without config
// the plugin has no settings. Trailing zero bytes are ignored, so a string literal works:
//
//   __attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used))
//   static const char manifest[] = "{ ... }";
#define HOST_PLUGIN_MANIFEST_SECTION ".host_manifest"

// DLPack's own header also declares these three types. If it was included first, its types are used.
#ifndef DLPACK_DLPACK_H_
// DLPack's DLDevice: 1 is the CPU, 2 a CUDA device.
typedef struct {
    // DLDeviceType.
    int32_t device_type;
    // Index of the device among those of its type.
    int32_t device_id;
} DLDevice;

// DLPack's DLDataType: code 0 is int, 1 uint, 2 float, 4 bfloat, 6 bool.
typedef struct {
    // DLDataTypeCode.
    uint8_t code;
    // Bits of one lane.
    uint8_t bits;
    // Always 1 here.
    uint16_t lanes;
} DLDataType;

// DLTensor of DLPack 1, the layout that array libraries support.
//
// The address of element i is data + byte_offset + sum(i[d] * strides[d]) * bits / 8.
typedef struct {
    // Start of the allocation; null if the tensor is empty.
    void *data;
    // Device of the data.
    DLDevice device;
    // Number of dimensions; 0 for a scalar.
    int32_t ndim;
    // Type of an element.
    DLDataType dtype;
    // ndim sizes.
    int64_t *shape;
    // ndim strides in elements, never null if ndim > 0.
    int64_t *strides;
    // Offset of the first element in bytes.
    uint64_t byte_offset;
} DLTensor;
#endif


// Major version: part of the entry symbol's name. Different major versions are incompatible.
#define HOST_ABI_MAJOR 1

// Minor version: increases when fields are appended.
#define HOST_ABI_MINOR 2

// The next constants are the kinds of a HostPluginItem.
//
// See HostParamGroups.
#define HOST_KIND_PARAM_GROUPS 1

// See HostMetric.
#define HOST_KIND_METRIC 2

// See HostCheckpointSink.
#define HOST_KIND_CHECKPOINT_SINK 3

// See HostObserver.
#define HOST_KIND_OBSERVER 4

// The next constants are the levels of HostApi::log.
//
// A failure.
#define HOST_LOG_ERROR 1

// A problem. The plugin continues.
#define HOST_LOG_WARN 2

// Information for users.
#define HOST_LOG_INFO 3

// Information for plugin authors.
#define HOST_LOG_DEBUG 4

// Flag of HostFetch: fetch everything that a resume needs, not only the model, its configuration
// and its tokenizer. Since 1.2.
#define HOST_FETCH_FOR_RESUME 1

// Flag of HostTensor: the plugin must not write through `dl.data`.
#define HOST_TENSOR_READ_ONLY 1

// The next constants are the kinds of a HostEvent.
//
// Training starts or, if `generation` is above 0, continues.
#define HOST_EVENT_RUN_STARTED 1

// Earlier events at steps above `of_step` are no longer valid. `generation`: the number of
// resumes.
#define HOST_EVENT_SUPERSEDED 2

// Measured `values`.
#define HOST_EVENT_METRICS 3

// A checkpoint is complete. `name`: its folder. `bytes`: its size.
#define HOST_EVENT_CHECKPOINT_WRITTEN 4

// A checkpoint could not be written. `text`: the reason.
#define HOST_EVENT_CHECKPOINT_FAILED 5

// The delivery of the checkpoint of step `of_step` to the sink `name` has a new state. `code`: a
// `HOST_DELIVERY_*`. `text`: the receipt or the reason.
#define HOST_EVENT_DELIVERY 6

// The plugin `name` failed in `call`. `text`: the reason.
#define HOST_EVENT_PLUGIN_FAULT 7

// The training loop carries out a request from `name`. `code`: a `HOST_REQUEST_*`. `factor`: the
// factor, if the request has one. `text`: the reason.
#define HOST_EVENT_REQUEST 8

// A warning. `text`: the message.
#define HOST_EVENT_WARNING 9

// Training ended. `code`: a `HOST_STOP_*`. `text`: the error, if an error ended it.
#define HOST_EVENT_RUN_FINISHED 10

// The next constants are the states of a delivery.
//
// The checkpoint is in the sink's queue.
#define HOST_DELIVERY_QUEUED 1

// The sink is sending the checkpoint.
#define HOST_DELIVERY_SENDING 2

// The sink returned a receipt.
#define HOST_DELIVERY_DELIVERED 3

// An attempt failed. The host can try again.
#define HOST_DELIVERY_FAILED 4

// A newer checkpoint replaced this one in a queue that keeps only the latest. Since 1.1.
#define HOST_DELIVERY_DROPPED 5

// The next constants are the reasons for the end of training.
//
// All steps are done.
#define HOST_STOP_COMPLETED 1

// A user interrupted training (SIGINT).
#define HOST_STOP_INTERRUPTED 2

// The system ended training (SIGTERM).
#define HOST_STOP_TERMINATED 3

// An error ended training.
#define HOST_STOP_FAILED 4

// An observer or a client requested the end of training.
#define HOST_STOP_REQUESTED 5

// The next constants are the requests to the training loop.
//
// Ends training, with a checkpoint.
#define HOST_REQUEST_STOP 1

// Writes a checkpoint, regardless of the configured interval.
#define HOST_REQUEST_CHECKPOINT 2

// Does not apply the update of the next step. The step still counts and uses its batches.
#define HOST_REQUEST_SKIP_STEP 3

// Multiplies the learning rate by the factor from now on, in addition to earlier factors.
#define HOST_REQUEST_SCALE_LEARNING_RATE 4

// Restores the weights and the optimizer from the last complete checkpoint. Batches that were
// already seen are not repeated: training continues with the next batch.
#define HOST_REQUEST_ROLL_BACK 5

// Evaluates the model. Only clients can send this request and the following ones. Observers
// receive the events of these requests, but `ask` returns `HOST_UNSUPPORTED` for the requests.
#define HOST_REQUEST_EVALUATE 6

// Pauses the loop at the step boundary.
#define HOST_REQUEST_PAUSE 7

// Ends a pause.
#define HOST_REQUEST_CONTINUE 8

// From now on, the learning rate is the schedule's rate times the factor, regardless of earlier
// factors. The factor is above 0 and can be above 1.
#define HOST_REQUEST_SET_LEARNING_RATE 9

// The result of a call. Unknown values count as HOST_ERROR.
typedef int32_t HostStatus;

// A borrowed UTF-8 text. It contains arbitrary bytes only where the comment of a field or function allows
// them. `ptr` can be null only if `len` is 0.
//
// The layout is frozen, so this struct has no `struct_size`.
typedef struct {
    // First byte.
    const uint8_t *ptr;
    // Length in bytes.
    size_t len;
} HostStr;

// The functions that the host provides to a plugin. Valid until the process ends.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // The host's HOST_ABI_MAJOR.
    uint32_t abi_major;
    // The host's HOST_ABI_MINOR.
    uint32_t abi_minor;
    // Zero.
    uint32_t reserved;
    // The first argument to pass to each function below.
    void *ctx;
    // `[any]` Returns whether messages of this level are logged, so that a plugin can avoid
    // creating costly messages.
    bool (*log_enabled)(void *ctx, int32_t level);
    // `[any]` Writes one line to the run's log. The host copies both texts. Cannot fail.
    void (*log)(void *ctx, int32_t level, HostStr target, HostStr message);
    // `[any]` Sets a one-line reason for the failure of the current call on this thread. The host
    // copies the message. If this is called several times, the host uses the last message before
    // the call returns.
    void (*set_error)(void *ctx, HostStr message);
    // `[any]` Returns a named extension, such as `host.retain-tensor/1`, or null if the host does not have
    // it. The extension belongs to the host and is valid until the process ends.
    const void *(*get_extension)(void *ctx, HostStr id);
} HostApi;

// The function `create` of every kind. `[main]` Creates an instance and writes it to `instance`.
// `config_json` is a JSON object that the host has checked against the manifest's schema, with the
// schema's defaults filled in; `{}` without a schema. The plugin owns the instance until
// `destroy`. The plugin may keep `api`, but not the text of `config_json`. On failure, this
// function writes null, and the host does not call `destroy`.
typedef HostStatus (*HostCreate)(const HostApi *api, HostStr config_json, void **instance);

// The function `destroy` of every kind. `[inst]` Joins the instance's threads and frees the
// instance. Called exactly once, as the last call, even after a panic. Cannot fail.
typedef void (*HostDestroy)(void *instance);

// A kind that a plugin implements.
typedef struct {
    // Size of this struct in the plugin's build; also the stride of `HostPlugin.items`.
    uint32_t struct_size;
    // One of the `HOST_KIND_*`.
    uint32_t kind;
    // A HostParamGroups, HostMetric,
    // HostCheckpointSink or
    // HostObserver, depending on `kind`.
    const void *vtable;
} HostPluginItem;

// Description of a plugin library.
typedef struct {
    // Size of this struct in the plugin's build.
    uint32_t struct_size;
    // The major version that the plugin was built against.
    uint32_t abi_major;
    // The minor version that the plugin was built against.
    uint32_t abi_minor;
    // The minimum minor version of a host that the plugin supports.
    uint32_t min_host_minor;
    // The plugin's id, as in the manifest.
    HostStr id;
    // The plugin's version, as in the manifest.
    HostStr version;
    // Length of `items`.
    size_t n_items;
    // The kinds that the plugin implements, each at most once.
    const HostPluginItem *items;
} HostPlugin;

// The entry function. `[main]` Returns the plugin's description, which is valid until the process ends.
// To reject the host, it calls `set_error` and returns null. Can be called more than once.
typedef const HostPlugin *(*HostPluginEntry)(const HostApi *api);

// A trainable parameter of the model. Tied weights appear once.
typedef struct {
    // Size of this struct in the host's build; also the stride of its array.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // The parameter's name as on the Hub, such as `transformer.h.0.ln_1.weight`.
    HostStr name;
    // `ndim` sizes.
    const int64_t *shape;
    // Number of dimensions.
    uint32_t ndim;
    // Type of an element.
    DLDataType dtype;
} HostParam;

// The input of a grouping.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // The trainable parameters, in the model's order.
    const HostParam *params;
    // Length of `params`.
    size_t n_params;
    // The run's `weight_decay`. Use it for groups with weight decay but without a value of their
    // own.
    double weight_decay;
} HostGroupsRequest;

// Receives the groups. Valid until the call returns.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t reserved;
    // The first argument to pass to each function below.
    void *ctx;
    // `[inst]` Adds a group and writes its index to `group`. The learning rate of the group's
    // parameters is the schedule's learning rate times `lr_multiplier`. The host copies the name.
    // Returns `HOST_ERROR` for an invalid or duplicate name. The host rejects the result if a
    // number is negative or not finite.
    HostStatus (*add_group)(void *ctx,
                            HostStr name,
                            double weight_decay,
                            double lr_multiplier,
                            uint32_t *group);
    // `[inst]` Assigns the parameter with this index in the request to a group. Returns `HOST_ERROR` for
    // an unknown parameter or group. The host rejects the result unless each parameter is assigned
    // exactly once.
    HostStatus (*assign)(void *ctx, size_t param, uint32_t group);
    // `[inst]` Reports a warning to the user, such as a pattern without matches. The host copies the
    // message. The status can be ignored.
    HostStatus (*warn)(void *ctx, HostStr message);
} HostGroupsOut;

// Assigns the model's parameters to the optimizer's groups.
typedef struct {
    // Size of this struct in the plugin's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // See HostCreate.
    HostCreate create;
    // See HostDestroy.
    HostDestroy destroy;
    // `[inst]` Assigns every parameter of the request to a group. The result must not depend on the
    // order of the parameters. The request is borrowed until this returns. If the call fails, the run
    // does not start.
    HostStatus (*group)(void *instance, const HostGroupsRequest *request, const HostGroupsOut *out);
} HostParamGroups;

// A named tensor, borrowed until the call that received it returns.
typedef struct {
    // Size of this struct in the host's build; also the stride of an array of these structs.
    uint32_t struct_size;
    // `HOST_TENSOR_*`.
    uint32_t flags;
    // Name of the input, from the manifest's `needs`.
    HostStr name;
    // The tensor's layout and data.
    const DLTensor *dl;
    // The CUDA stream on which the data becomes ready. Null if it is ready already.
    void *stream;
} HostTensor;

// The inputs of one evaluation batch.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // The optimizer step of the evaluation.
    uint64_t step;
    // The inputs that the manifest's `needs` lists, in any order.
    //
    // | name | shape and type | content |
    // |---|---|---|
    // | `loss_sum` | 0-d f64 | sum of the negative log likelihoods in nats |
    // | `token_count` | 0-d i64 | number of predicted tokens |
    // | `nll` | (batch, time) f32 | negative log likelihood of each predicted token, nats |
    // | `labels` | (batch, time) i64 | the predicted tokens' ids |
    // | `argmax` | (batch, time) i64 | the most likely token's id |
    // | `label_rank` | (batch, time) i64 | the label's rank by likelihood, from 0; ties are ordered by id |
    // | `byte_count` | 0-d i64 | number of UTF-8 bytes of the predicted tokens |
    // | `logits` | (batch, time, vocabulary) f32 | all logits; large, so use them only as a last resort |
    const HostTensor *tensors;
    // Length of `tensors`.
    size_t n_tensors;
} HostBatch;

// Receives the results of a call. Valid until the call returns. The functions copy their arguments.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t reserved;
    // The first argument to pass to each function below.
    void *ctx;
    // `[inst]` Adds a named number; a call can add at most 1,000. The name has 1 to 200 bytes; the
    // host copies it. Returns `HOST_ERROR` for a duplicate or invalid name. The plugin's call then
    // fails, regardless of the status that the plugin returns. When the plugin's call has
    // returned, the host checks the names. The call fails if a name is one of these: a name of the
    // host (`lr`, `loss/train`, names that start with `system/`, `plugin/`, `baseline/` or
    // `rank/`); a name that resembles a name of the host; a name of another plugin.
    HostStatus (*put_f64)(void *ctx, HostStr name, double value);
    // `[inst]` Sets the bytes of the result. The host copies them. If this is called several
    // times, the host uses the last bytes. Returns `HOST_ERROR` for more than 64 MiB.
    HostStatus (*put_bytes)(void *ctx, HostStr bytes);
} HostOut;

// An evaluation metric. The host adds batches to the state of an instance, and merges the states
// of all ranks.
//
// Merging must be associative and commutative: exactly for integers, to 1e-12 for f64 sums.
typedef struct {
    // Size of this struct in the plugin's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // See HostCreate.
    HostCreate create;
    // See HostDestroy.
    HostDestroy destroy;
    // `[inst]` Resets the state to that of a new instance. Called before each evaluation.
    HostStatus (*reset)(void *instance);
    // `[inst]` Adds a batch to the state. The batch and its tensors are borrowed until this
    // returns. Returns `HOST_UNSUPPORTED` for an input that the metric cannot read. If the call
    // fails, the metric has no value in this evaluation.
    HostStatus (*update)(void *instance, const HostBatch *batch);
    // `[inst]` Passes the state as bytes to `put_bytes`, which copies them. The bytes must contain
    // the version of their format.
    HostStatus (*export_state)(void *instance, const HostOut *out);
    // `[inst]` Merges a state that another instance exported into this state. The bytes are borrowed
    // until this returns and can be unaligned. Returns an error for bytes that are not a valid state, and
    // then leaves this state unchanged.
    HostStatus (*merge_state)(void *instance, HostStr state);
    // `[inst]` Passes the named values of the state to `put_f64`. Does not change the state.
    // Values can be infinite or NaN. Fails if there is no value, for example because no batch was
    // added.
    HostStatus (*compute)(void *instance, const HostOut *out);
} HostMetric;

// A complete checkpoint in the run folder. The host keeps it until the sink has returned.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // The optimizer step of the checkpoint.
    uint64_t step;
    // The run's name: letters, digits, `.`, `_` and `-`; a valid branch name.
    HostStr run;
    // Absolute path of the checkpoint's folder. Do not write to it.
    HostStr dir;
    // The folder's `manifest.json`: `{"files": {"PATH": {"sha256": HEX, "size": BYTES}, …}}`.
    HostStr manifest_json;
    // The evaluation's values at this step: `{"loss/eval": 1.5, …}`. Values that are not finite
    // are strings (`"inf"`, `"nan"`).
    HostStr metrics_json;
    // Absolute path of the sink's own folder. It exists, is kept after the run, and is not part of any
    // checkpoint.
    HostStr state_dir;
} HostCheckpoint;

// Information about a run, available before its first step.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // The run's name, the same as in its checkpoints.
    HostStr run;
    // Absolute path of the sink's own folder: the `state_dir` of every HostCheckpoint of the run.
    HostStr state_dir;
    // Approximate size of a checkpoint of the run, with everything that a resume needs.
    uint64_t checkpoint_bytes;
    // Approximate size of the model, its configuration and its tokenizer within a checkpoint.
    uint64_t model_bytes;
} HostPreflight;

// A request to fetch a checkpoint from a sink's destination.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // HOST_FETCH_FOR_RESUME, or zero.
    uint32_t flags;
    // The checkpoint to fetch, as the destination identifies it, for example a branch or a commit.
    // If empty, the sink fetches the newest checkpoint.
    HostStr revision;
    // Absolute path of the sink's own folder. It exists and is kept after the process ends.
    HostStr state_dir;
} HostFetch;

// Delivers checkpoints to a destination. The host manages the queue and the ledger.
typedef struct {
    // Size of this struct in the plugin's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // See HostCreate.
    HostCreate create;
    // See HostDestroy.
    HostDestroy destroy;
    // `[worker]` Delivers the checkpoint and passes a receipt to `put_bytes`: a JSON object by
    // which users can find the checkpoint (`commit`, `path`). Delivering a checkpoint again must
    // change nothing. The checkpoint is borrowed until this returns. After `HOST_TEMPORARY` or
    // `HOST_CANCELLED`, the checkpoint stays queued and the host tries again. After `HOST_PANIC`,
    // the host tries again with a new instance. Any other failure is final in this process, but a
    // process that resumes the run tries again.
    HostStatus (*publish)(void *instance, const HostCheckpoint *checkpoint, const HostOut *out);
    // `[any]` Requests that the current call of `publish`, `preflight` or `fetch`, if there is
    // one, end soon with `HOST_CANCELLED`. Returns immediately and cannot fail.
    void (*cancel)(void *instance);
    // `[worker]` Since 1.1; can be null. Called before the first step of a new or resumed run.
    // Checks that checkpoints can be delivered. For this, the destination must exist, be writable
    // and have enough space. Delivers nothing. Returns `HOST_OK` if checkpoints can be delivered,
    // and can pass a short text for users to `put_bytes`. Returns `HOST_TEMPORARY` if the
    // destination is not ready (no network), and another failure if the destination will never be
    // ready. `preflight` is borrowed until this returns.
    HostStatus (*preflight)(void *instance, const HostPreflight *preflight, const HostOut *out);
    // `[worker]` Since 1.2; null if the sink cannot fetch. Copies a checkpoint from the
    // destination into a folder below `state_dir`. The folder has the layout of a delivered
    // checkpoint. Passes a receipt to `put_bytes`: a JSON object with the folder's absolute `path`
    // and an identifier for users and for later fetches (`commit`). The folder must be complete
    // and must be kept, since the host can read it at any later time. Fetching a checkpoint again
    // must change nothing. Returns `HOST_TEMPORARY` if the destination is not ready (no network),
    // and another failure if the destination does not have the checkpoint. `fetch` is borrowed
    // until this returns.
    HostStatus (*fetch)(void *instance, const HostFetch *fetch, const HostOut *out);
} HostCheckpointSink;

// A metric's name and value.
typedef struct {
    // Size of this struct in the host's build; also the stride of its array.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // The metric's name, such as `loss/train`, `loss/eval` or `lr`.
    HostStr name;
    // The value; can be infinite or NaN.
    double value;
} HostValue;

// Something that happened in a run. The comment of each `HOST_EVENT_*` lists the fields of its kind;
// all others are zero or empty.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // One of the `HOST_EVENT_*`. A plugin must skip unknown kinds, which a newer host can add.
    uint32_t kind;
    // Number of optimizer steps finished at the time of the event.
    uint64_t step;
    // Measured values. Each name appears once.
    const HostValue *values;
    // Length of `values`.
    size_t n_values;
    // A checkpoint's folder (`step-000100`), a plugin's id, or the sender of a request.
    HostStr name;
    // The call that failed, such as `update` or `publish`.
    HostStr call;
    // A message or reason for users; for a completed delivery, the sink's receipt (JSON).
    HostStr text;
    // Total size of a checkpoint's files.
    uint64_t bytes;
    // A step other than that of the event; see the kind.
    uint64_t of_step;
    // Number of times the run was resumed.
    uint32_t generation;
    // A constant; see the kind.
    uint32_t code;
    // The factor by which a request multiplies the learning rate.
    double factor;
} HostEvent;

// Receives requests. Valid until the call returns.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t reserved;
    // The first argument to pass to each function below.
    void *ctx;
    // `[main]` Sends a request (a `HOST_REQUEST_*`) to the loop, which carries it out at the next step
    // boundary. `factor` is in (0, 1] for `HOST_REQUEST_SCALE_LEARNING_RATE` and ignored otherwise.
    // `reason` is for users and is recorded; it must not be empty. The host copies it. Returns
    // `HOST_UNSUPPORTED` if the host does not support the request; the plugin can then send another.
    // Returns `HOST_ERROR` for an invalid factor or reason.
    HostStatus (*ask)(void *ctx, uint32_t request, double factor, HostStr reason);
} HostRequestsOut;

// Receives the events of a run in order and can send requests.
//
// Only observers have state in the checkpoint. The other kinds do not need it: metrics are reset
// before each evaluation, and no checkpoint is written during one; parameter groups are computed only
// once. Sinks keep their state in `state_dir`, so that a checkpoint has the same bytes at every
// destination.
typedef struct {
    // Size of this struct in the plugin's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // See HostCreate.
    HostCreate create;
    // See HostDestroy.
    HostDestroy destroy;
    // `[main]` Receives an event. The manifest's `events` lists the kinds; the default is all. The event
    // is borrowed until this returns. Training waits for this call.
    HostStatus (*observe)(void *instance, const HostEvent *event, const HostRequestsOut *out);
    // `[main]` Passes the state as bytes to `put_bytes`, which copies them, for the checkpoint.
    // The bytes must contain the version of their format, and equal states must have equal bytes.
    // If the call fails, the checkpoint has no state of this plugin. If the observer has no state,
    // this and `import_state` must both be null.
    HostStatus (*export_state)(void *instance, const HostOut *out);
    // `[main]` Replaces the state with an exported state, possibly from another version of the
    // plugin. The bytes are borrowed until this returns. If the bytes cannot be read, returns an
    // error and leaves the state unchanged; the resume then fails.
    HostStatus (*import_state)(void *instance, HostStr state);
} HostObserver;

// The call succeeded.
#define HOST_OK 0

// The call failed. The reason is the last message passed to `set_error` on this thread.
#define HOST_ERROR 1

// The plugin panicked. The instance is poisoned and can only be destroyed.
#define HOST_PANIC 2

// The call is not supported, and a retry would not help. Examples are an unknown dtype and a
// missing field.
#define HOST_UNSUPPORTED 3

// The call ended early because `cancel` was called.
#define HOST_CANCELLED 4

// The call failed for a temporary reason, such as the network or a lock. The host can try again.
#define HOST_TEMPORARY 5

// Defined by the plugin; see HostPluginEntry.
__attribute__((visibility("default"))) const HostPlugin *host_plugin_entry_v1(const HostApi *api);

#ifdef __cplusplus
}
#endif

#endif

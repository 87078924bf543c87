// The C ABI between the host and its plugins, version 1. Generated from the crate beside it: do not
// edit, run `make bless`.
//
// A plugin is a shared library that exports one function, host_plugin_entry_v1, and embeds a JSON
// manifest in the ELF section HOST_PLUGIN_MANIFEST_SECTION, which the host reads before it runs any
// code of the plugin. Rules that hold for every type here:
//
// Growth: the major version is in the entry symbol's name. A minor version only appends fields.
// Every struct but HostStr and the DLPack ones starts with struct_size; read the field f only if
// offsetof(f) + sizeof(f) <= struct_size.
//
// Ownership: who allocates frees, and nothing is freed across the boundary. What a call receives is
// borrowed until it returns, unless its comment says otherwise. Output goes only through the host's
// callbacks, which copy.
//
// Strings are UTF-8, pointer and length, without a terminating zero.
//
// Threads: [main] the thread that set the host up. [inst] one thread at a time for an instance,
// which may migrate between calls. [any] any thread at any time. [worker] a thread of the
// instance's own on which it may block.
//
// Faults: no panic, exception or longjmp leaves a plugin. After HOST_PANIC the host only destroys
// the instance.
//
// A plugin does not link libtorch, and leaves alone signals, the environment, the working directory
// and exit.

#ifndef HOST_PLUGIN_H
#define HOST_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// The one symbol a plugin exports; its type is HostPluginEntry.
#define HOST_PLUGIN_ENTRY_SYMBOL "host_plugin_entry_v1"

// The ELF section that holds the plugin's manifest: one JSON object in UTF-8.
//
//   { "abi": [1, 0], "id": "perplexity", "version": "0.1.0", "description": "...",
//     "kinds": ["metric"], "needs": ["loss_sum"], "devices": ["cpu"], "config": { JSON Schema } }
//
// kinds has param_groups, metric, checkpoint_sink and observer. needs and devices are a metric's;
// devices has cpu and cuda, and is ["cpu"] where it is absent. events are an observer's: run_started,
// superseded, metrics, checkpoint_written, checkpoint_failed, delivery, plugin_fault, request,
// warning, run_finished; it sees those alone, and all where it is absent. Without config the plugin
// takes no settings. Zero bytes behind the object are ignored, so a string will do:
//
//   __attribute__((section(HOST_PLUGIN_MANIFEST_SECTION), used))
//   static const char manifest[] = "{ ... }";
#define HOST_PLUGIN_MANIFEST_SECTION ".host_manifest"

// DLPack's own header declares these three too. Where it was included first, its own are used.
#ifndef DLPACK_DLPACK_H_
// DLPack's DLDevice: 1 is the CPU, 2 a CUDA device.
typedef struct {
    // DLDeviceType.
    int32_t device_type;
    // Which of them.
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

// DLPack 1's DLTensor, the layout that every array library reads.
//
// The element i lies at data + byte_offset + sum(i[d] * strides[d]) * bits / 8.
typedef struct {
    // Start of the allocation; null if the tensor is empty.
    void *data;
    // Where the data lies.
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


// Major version: part of the entry symbol's name; another major is another ABI.
#define HOST_ABI_MAJOR 1

// Minor version: counts the appended fields.
#define HOST_ABI_MINOR 2

// Kinds of a HostPluginItem. See HostParamGroups.
#define HOST_KIND_PARAM_GROUPS 1

// See HostMetric.
#define HOST_KIND_METRIC 2

// See HostCheckpointSink.
#define HOST_KIND_CHECKPOINT_SINK 3

// See HostObserver.
#define HOST_KIND_OBSERVER 4

// Levels of HostApi::log.
#define HOST_LOG_ERROR 1

// Something is wrong, and the plugin goes on.
#define HOST_LOG_WARN 2

// What a user may like to know.
#define HOST_LOG_INFO 3

// What an author may like to know.
#define HOST_LOG_DEBUG 4

// Flag of HostFetch: all that a resume needs is wanted, not the model, its configuration and its
// tokenizer alone. Since 1.2.
#define HOST_FETCH_FOR_RESUME 1

// Flag of HostTensor: the plugin must not write through `dl.data`.
#define HOST_TENSOR_READ_ONLY 1

// Kinds of a HostEvent. Training begins or, with a `generation` above 0, goes on.
#define HOST_EVENT_RUN_STARTED 1

// What was recorded above `of_step` no longer counts; `generation`.
#define HOST_EVENT_SUPERSEDED 2

// Measured `values`.
#define HOST_EVENT_METRICS 3

// A complete checkpoint stands: its folder's `name` and its `bytes`.
#define HOST_EVENT_CHECKPOINT_WRITTEN 4

// A checkpoint could not be written; `text`.
#define HOST_EVENT_CHECKPOINT_FAILED 5

// The checkpoint of `of_step` on its way to the sink `name`: how far it came is the `code`, a
// `HOST_DELIVERY_*`; the receipt or reason is the `text`.
#define HOST_EVENT_DELIVERY 6

// The plugin `name` failed in `call`; `text`.
#define HOST_EVENT_PLUGIN_FAULT 7

// The loop carries out what `name` asked for: the `code` is a `HOST_REQUEST_*`, with its `factor`;
// the reason is the `text`.
#define HOST_EVENT_REQUEST 8

// Something odd; `text`.
#define HOST_EVENT_WARNING 9

// Training ended: why is the `code`, a `HOST_STOP_*`; the error, if it was one, is the `text`.
#define HOST_EVENT_RUN_FINISHED 10

// How far a delivery came. It waits for the sink.
#define HOST_DELIVERY_QUEUED 1

// The sink is at work.
#define HOST_DELIVERY_SENDING 2

// The sink gave a receipt.
#define HOST_DELIVERY_DELIVERED 3

// The sink gave up.
#define HOST_DELIVERY_FAILED 4

// A newer checkpoint took its place in a queue that keeps the latest alone. Since 1.1.
#define HOST_DELIVERY_DROPPED 5

// Why training ended. All steps were done.
#define HOST_STOP_COMPLETED 1

// A person interrupted it (SIGINT).
#define HOST_STOP_INTERRUPTED 2

// The system asked it to end (SIGTERM).
#define HOST_STOP_TERMINATED 3

// An error.
#define HOST_STOP_FAILED 4

// A request for it was carried out.
#define HOST_STOP_REQUESTED 5

// What may be asked of the loop. Training ends, with a checkpoint.
#define HOST_REQUEST_STOP 1

// A checkpoint is written, whatever the period says.
#define HOST_REQUEST_CHECKPOINT 2

// The next step takes its batches and counts, but its update is not applied.
#define HOST_REQUEST_SKIP_STEP 3

// The learning rate is the schedule's times the factor from now on; factors multiply.
#define HOST_REQUEST_SCALE_LEARNING_RATE 4

// Weights and optimizer become those of the last complete checkpoint, and training goes on with
// the batches behind those already seen.
#define HOST_REQUEST_ROLL_BACK 5

// The model is evaluated. This request and those after it are people's: observers see that they are
// carried out, and are answered `HOST_UNSUPPORTED` if they ask for one.
#define HOST_REQUEST_EVALUATE 6

// The loop stands still at the step boundary.
#define HOST_REQUEST_PAUSE 7

// The loop goes on after a pause.
#define HOST_REQUEST_CONTINUE 8

// The learning rate is the schedule's times the factor from now on, whatever it was before; the
// factor is above 0 and may be above 1.
#define HOST_REQUEST_SET_LEARNING_RATE 9

// What a call ended with. An unknown value counts as HOST_ERROR.
typedef int32_t HostStatus;

// UTF-8 text or, where a comment says so, bytes. Borrowed. `ptr` may be null only if `len` is 0.
//
// Frozen: the one struct of the ABI without a size.
typedef struct {
    // First byte.
    const uint8_t *ptr;
    // Length in bytes.
    size_t len;
} HostStr;

// What the host gives to a plugin. It lives until the process ends.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // The host's HOST_ABI_MAJOR.
    uint32_t abi_major;
    // The host's HOST_ABI_MINOR.
    uint32_t abi_minor;
    // Zero.
    uint32_t reserved;
    // Handed back as the first argument of each function below.
    void *ctx;
    // `[any]` Whether a message of this level would be kept, for messages that are costly to make.
    bool (*log_enabled)(void *ctx, int32_t level);
    // `[any]` Writes one line to the run's log. The host copies both texts. It cannot fail.
    void (*log)(void *ctx, int32_t level, HostStr target, HostStr message);
    // `[any]` Says why the call now running on this thread will fail, in one line. The host copies it;
    // the last one before the call returns counts.
    void (*set_error)(void *ctx, HostStr message);
    // `[any]` A named extension such as `host.retain-tensor/1`, or null if the host has none. What it
    // points to is the host's and lives until the process ends.
    const void *(*get_extension)(void *ctx, HostStr id);
} HostApi;

// `create` of every kind. `[main]` Reads the configuration (a JSON object that the host has
// checked against the manifest's schema, with the schema's defaults filled in; `{}` without a schema)
// and writes the new instance to `instance`, which is the plugin's until `destroy`. It may keep `api`,
// but not the text. On a failure it leaves null there, and nothing to destroy.
typedef HostStatus (*HostCreate)(const HostApi *api, HostStr config_json, void **instance);

// `destroy` of every kind. `[inst]` The last call of the instance, made once, also after a panic:
// joins the instance's threads and frees it. It cannot fail.
typedef void (*HostDestroy)(void *instance);

// One kind that a plugin implements.
typedef struct {
    // Size of this struct in the plugin's build; also the stride of the array it lies in.
    uint32_t struct_size;
    // One of the `HOST_KIND_*`.
    uint32_t kind;
    // A HostParamGroups, HostMetric,
    // HostCheckpointSink or
    // HostObserver, as `kind` says.
    const void *vtable;
} HostPluginItem;

// What a plugin library is.
typedef struct {
    // Size of this struct in the plugin's build.
    uint32_t struct_size;
    // The major version it was built against.
    uint32_t abi_major;
    // The minor version it was built against.
    uint32_t abi_minor;
    // The smallest minor version of a host that it can work with.
    uint32_t min_host_minor;
    // As in the manifest.
    HostStr id;
    // As in the manifest.
    HostStr version;
    // Length of `items`.
    size_t n_items;
    // The kinds it implements, each at most once.
    const HostPluginItem *items;
} HostPlugin;

// The entry function. `[main]` Returns a description that lives until the process ends, or null
// to refuse this host after saying why by `set_error`. It may be called more than once.
typedef const HostPlugin *(*HostPluginEntry)(const HostApi *api);

// A trainable parameter of the model. Tied weights appear once.
typedef struct {
    // Size of this struct in the host's build; also the stride of the array it lies in.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // Its name as on the Hub: `transformer.h.0.ln_1.weight`.
    HostStr name;
    // `ndim` sizes.
    const int64_t *shape;
    // Number of dimensions.
    uint32_t ndim;
    // Type of an element.
    DLDataType dtype;
} HostParam;

// What a grouping is made from.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // The trainable parameters, in the model's order.
    const HostParam *params;
    // Length of `params`.
    size_t n_params;
    // The run's `weight_decay`, for groups that decay and say no other.
    double weight_decay;
} HostGroupsRequest;

// Where the groups go. Valid until the call returns.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t reserved;
    // Handed back as the first argument of each function below.
    void *ctx;
    // `[inst]` Adds a group and writes its index to `group`. The learning rate of its parameters
    // is the schedule's times `lr_multiplier`. The host copies the name. `HOST_ERROR` for one that
    // cannot be a group's. Numbers that are not finite, or below 0, make the result unusable.
    HostStatus (*add_group)(void *ctx,
                            HostStr name,
                            double weight_decay,
                            double lr_multiplier,
                            uint32_t *group);
    // `[inst]` Puts the parameter with this index of the request into a group. `HOST_ERROR` if there
    // is no such parameter or group. The host refuses the result unless each parameter was put into
    // one group once.
    HostStatus (*assign)(void *ctx, size_t param, uint32_t group);
    // `[inst]` Tells the user of something odd, such as a pattern that matches nothing. The host
    // copies the message. What it returns can be ignored.
    HostStatus (*warn)(void *ctx, HostStr message);
} HostGroupsOut;

// Decides the optimizer's parameter groups.
typedef struct {
    // Size of this struct in the plugin's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // See HostCreate.
    HostCreate create;
    // See HostDestroy.
    HostDestroy destroy;
    // `[inst]` Puts every parameter of the request into a group. The order of the parameters does
    // not matter to the result. The request is borrowed until this returns. After a failure the run
    // does not start.
    HostStatus (*group)(void *instance, const HostGroupsRequest *request, const HostGroupsOut *out);
} HostParamGroups;

// A named tensor, borrowed until the call that received it returns.
typedef struct {
    // Size of this struct in the host's build; also the stride of the array it lies in.
    uint32_t struct_size;
    // `HOST_TENSOR_*`.
    uint32_t flags;
    // Which input it is: a name of the manifest's `needs`.
    HostStr name;
    // The view itself.
    const DLTensor *dl;
    // The CUDA stream on which the data is ready, or null: then it is ready already.
    void *stream;
} HostTensor;

// The inputs of one evaluation batch.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // The optimizer step at which the evaluation takes place.
    uint64_t step;
    // What the manifest's `needs` asked for, in any order.
    //
    // | name | shape and type | what |
    // |---|---|---|
    // | `loss_sum` | 0-d f64 | sum of the negative log likelihoods in nats |
    // | `token_count` | 0-d i64 | number of predicted tokens |
    // | `nll` | (batch, time) f32 | negative log likelihood of each predicted token, nats |
    // | `labels` | (batch, time) i64 | the predicted tokens' ids |
    // | `argmax` | (batch, time) i64 | the most likely token |
    // | `label_rank` | (batch, time) i64 | the label's place from 0, the likeliest first, of equal ones the lower id |
    // | `byte_count` | 0-d i64 | UTF-8 bytes of the predicted tokens |
    // | `logits` | (batch, time, vocabulary) f32 | all of them; large, so the last resort |
    const HostTensor *tensors;
    // Length of `tensors`.
    size_t n_tensors;
} HostBatch;

// Where a call puts its results. Valid until the call returns; the functions copy.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t reserved;
    // Handed back as the first argument of each function below.
    void *ctx;
    // `[inst]` Adds a named number, at most 1,000 in a call. The host copies the name, which has 1 to 200
    // bytes. `HOST_ERROR` for the same name twice, or one that cannot be a name; the call fails then,
    // whatever it returns. It fails afterwards where a name is the host's (`lr`, `loss/train`, what
    // begins with `system/`, `plugin/` or `baseline/`), looks like one of those, or is another plugin's.
    HostStatus (*put_f64)(void *ctx, HostStr name, double value);
    // `[inst]` Sets the bytes of the result, which the host copies; the last call counts. `HOST_ERROR`
    // for more than 64 MiB.
    HostStatus (*put_bytes)(void *ctx, HostStr bytes);
} HostOut;

// An evaluation metric: a state that batches are added to and that merges across ranks.
//
// Merging is associative and commutative: integers exactly, f64 sums to 1e-12.
typedef struct {
    // Size of this struct in the plugin's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // See HostCreate.
    HostCreate create;
    // See HostDestroy.
    HostDestroy destroy;
    // `[inst]` Makes the state that of a new instance. It comes before each evaluation.
    HostStatus (*reset)(void *instance);
    // `[inst]` Adds a batch to the state. The batch and its tensors are the host's and are borrowed
    // until this returns. Of an input that it cannot read it says `HOST_UNSUPPORTED`. After a failure
    // the metric has no value in this evaluation.
    HostStatus (*update)(void *instance, const HostBatch *batch);
    // `[inst]` Puts the state as bytes by `put_bytes`, which copies. They say their own version.
    HostStatus (*export_state)(void *instance, const HostOut *out);
    // `[inst]` Adds to the state one that another instance exported. The bytes are borrowed until this
    // returns, and need not be aligned. Those that are no state are an error and leave this one's as
    // it is.
    HostStatus (*merge_state)(void *instance, HostStr state);
    // `[inst]` Puts the named values of the state by `put_f64`, and leaves the state as it is. Infinity
    // and NaN are values; where there is none, as of no batch, it fails.
    HostStatus (*compute)(void *instance, const HostOut *out);
} HostMetric;

// A complete checkpoint in the run folder. The host keeps it until the sink has returned.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // The optimizer step it was taken at.
    uint64_t step;
    // The run's name: letters, digits, `.`, `_` and `-`; a valid branch name.
    HostStr run;
    // Absolute path of the checkpoint's folder. Not to be written to.
    HostStr dir;
    // The folder's `manifest.json`: `{"files": {"PATH": {"sha256": HEX, "size": BYTES}, …}}`.
    HostStr manifest_json;
    // The evaluation's values at this step, `{"loss/eval": 1.5, …}`; those that are not finite
    // are strings (`"inf"`, `"nan"`).
    HostStr metrics_json;
    // Absolute path of a folder of the sink's own, which exists, survives the run and is part of
    // no checkpoint.
    HostStr state_dir;
} HostCheckpoint;

// What a sink may know of a run before its first step.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // The run's name, as its checkpoints will have it.
    HostStr run;
    // Absolute path of the sink's own folder, as its checkpoints will have it.
    HostStr state_dir;
    // About how many bytes a checkpoint of the run takes, with all that a resume needs.
    uint64_t checkpoint_bytes;
    // About how many of them are the model, its configuration and its tokenizer.
    uint64_t model_bytes;
} HostPreflight;

// Which checkpoint of a destination is wanted back, and where it may be kept.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // HOST_FETCH_FOR_RESUME, or zero.
    uint32_t flags;
    // Which one, in the destination's own words: a branch, a commit. Empty: the newest.
    HostStr revision;
    // Absolute path of a folder of the sink's own, which exists and survives the process.
    HostStr state_dir;
} HostFetch;

// Delivers checkpoints somewhere. The host owns the queue and the ledger; the sink reports.
typedef struct {
    // Size of this struct in the plugin's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // See HostCreate.
    HostCreate create;
    // See HostDestroy.
    HostDestroy destroy;
    // `[worker]` Delivers the checkpoint and puts a receipt by `put_bytes`: a JSON object of the
    // sink's, with what lets a person find it (`commit`, `path`). Delivering the same again changes
    // nothing. The checkpoint is borrowed until this returns. After `HOST_TEMPORARY` and
    // `HOST_CANCELLED` it stays queued and is tried again, after `HOST_PANIC` by another instance. Any
    // other failure is final for it in this process; another that takes up the run offers it again.
    HostStatus (*publish)(void *instance, const HostCheckpoint *checkpoint, const HostOut *out);
    // `[any]` Asks the `publish` or `preflight` that is running, if any, to end soon with
    // `HOST_CANCELLED`. Returns at once, and cannot fail.
    void (*cancel)(void *instance);
    // `[worker]` Since 1.1; may be null. Looks, before the first step of a run or of its resume,
    // whether checkpoints will arrive: whether the destination is there, may be written to and has
    // room. Delivers nothing. `HOST_OK` if so; what was found may be put by `put_bytes`, as a short
    // text for people. `HOST_TEMPORARY` if the world is not ready (no network), any other failure if
    // it never will be. `preflight` is borrowed until this returns.
    HostStatus (*preflight)(void *instance, const HostPreflight *preflight, const HostOut *out);
    // `[worker]` Since 1.2; may be null, in a sink that brings nothing back. Brings a checkpoint that
    // the destination has into a folder below `state_dir`, laid out as it was delivered, and puts a
    // receipt by `put_bytes`: a JSON object whose `path` is the folder, absolute, and which says for
    // people and for the next time what it is (`commit`). The folder is whole, and the host may read
    // it for as long as it likes. Fetching the same again changes nothing. `HOST_TEMPORARY` if the
    // world is not ready (no network), any other failure if the destination has no such checkpoint.
    // `fetch` is borrowed until this returns. `cancel` ends it, too.
    HostStatus (*fetch)(void *instance, const HostFetch *fetch, const HostOut *out);
} HostCheckpointSink;

// A named number.
typedef struct {
    // Size of this struct in the host's build; also the stride of the array it lies in.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // `loss/train`, `loss/eval`, `lr`.
    HostStr name;
    // Infinity and NaN are values.
    double value;
} HostValue;

// Something that happened in a run. The comment of each `HOST_EVENT_*` says which fields its kind
// has; all others are zero or empty.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // One of the `HOST_EVENT_*`. A plugin skips those that it does not know: a newer host has more.
    uint32_t kind;
    // The optimizer steps finished by then.
    uint64_t step;
    // Measured values, each name once.
    const HostValue *values;
    // Length of `values`.
    size_t n_values;
    // A checkpoint's folder (`step-000100`), or the id of the plugin that the event is about.
    HostStr name;
    // The call that failed: `update`, `publish`.
    HostStr call;
    // A message or reason, for people; of a delivery that was made, the sink's receipt (JSON).
    HostStr text;
    // Size of a checkpoint's files.
    uint64_t bytes;
    // Another step than the event's own.
    uint64_t of_step;
    // How often the run was resumed.
    uint32_t generation;
    // A number whose meaning the kind says.
    uint32_t code;
    // What a request multiplies the learning rate by.
    double factor;
} HostEvent;

// Where requests go. Valid until the call returns.
typedef struct {
    // Size of this struct in the host's build.
    uint32_t struct_size;
    // Zero.
    uint32_t reserved;
    // Handed back as the first argument of each function below.
    void *ctx;
    // `[main]` Asks the loop for something, a `HOST_REQUEST_*`, which it does at the next step
    // boundary. `factor` is in (0, 1] for `HOST_REQUEST_SCALE_LEARNING_RATE`, and not looked at
    // otherwise. `reason` is for people and is recorded; it may not be empty. A host that does
    // not know the request answers `HOST_UNSUPPORTED`, and the plugin may ask for another;
    // `HOST_ERROR` is for a factor or a reason that cannot be. The host copies the reason.
    HostStatus (*ask)(void *ctx, uint32_t request, double factor, HostStr reason);
} HostRequestsOut;

// Sees what happens in a run, in order, and may ask for something.
//
// It is the one kind with a state in the checkpoint: a metric is reset before each evaluation and
// no checkpoint is taken within one, a grouping is made once, and a sink keeps what it must know
// in its `state_dir`, since a checkpoint has the same bytes wherever it is delivered.
typedef struct {
    // Size of this struct in the plugin's build.
    uint32_t struct_size;
    // Zero.
    uint32_t flags;
    // See HostCreate.
    HostCreate create;
    // See HostDestroy.
    HostDestroy destroy;
    // `[main]` Looks at an event of the kinds that the manifest's `events` names, of all if it has
    // none. The event is borrowed until this returns. The training waits for it.
    HostStatus (*observe)(void *instance, const HostEvent *event, const HostRequestsOut *out);
    // `[main]` Puts the state as bytes by `put_bytes`, which copies. They say their own version;
    // equal states are equal bytes. They go into the checkpoint; after a failure it has none of this
    // plugin. Null, together with `import_state`, if there is no state.
    HostStatus (*export_state)(void *instance, const HostOut *out);
    // `[main]` Makes the state one that an instance exported before, perhaps of another version of
    // the plugin. The bytes are borrowed until this returns. Those that it cannot read are an error
    // and leave the state as it is; the resume fails then.
    HostStatus (*import_state)(void *instance, HostStr state);
} HostObserver;

// The call did what it says.
#define HOST_OK 0

// It failed; the reason is what `set_error` was last told on this thread.
#define HOST_ERROR 1

// The plugin panicked; the instance is poisoned and may only be destroyed.
#define HOST_PANIC 2

// The plugin cannot do this, and asking again would not help: an unknown dtype, a missing field.
#define HOST_UNSUPPORTED 3

// The call ended early because `cancel` was called.
#define HOST_CANCELLED 4

// It failed for a reason that may pass (the network, a lock): the host may try again.
#define HOST_TEMPORARY 5

// What a plugin defines; see HostPluginEntry.
__attribute__((visibility("default"))) const HostPlugin *host_plugin_entry_v1(const HostApi *api);

#ifdef __cplusplus
}
#endif

#endif

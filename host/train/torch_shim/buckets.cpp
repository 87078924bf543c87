// Buckets of gradients, which are summed over the ranks during the backward pass. The conventions are those of
// shim.cpp.

#include <algorithm>
#include <exception>
#include <memory>
#include <vector>

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include "collective.h"
#include "shim.h"

using shim::guarded;
using std::chrono::milliseconds;

namespace {

// Flat tensors that contain the gradients of parameters. As soon as all gradients of a bucket are complete in the
// last backward pass of a step, the bucket's sum over the ranks begins, while the pass continues.
//
// The parameters are given in the order in which their gradients become complete. The layout depends only on this
// list and the sizes. Gloo's rounding depends on an element's position in a buffer, so a resumed training must use
// the same layout. (c10d's Reducer changes its layout after the first step.)
class Buckets {
  public:
	Buckets(const Group &group, std::vector<at::Tensor> params, int64_t capacity)
	    : group_(group), params_(std::move(params)), views_(params_.size()),
	      bucket_of_(params_.size()), complete_(params_.size()) {
		std::vector<size_t> members;
		int64_t bytes = 0;
		for (size_t i = 0; i < params_.size(); i++) {
			const auto size = static_cast<int64_t>(params_[i].nbytes());
			// A large parameter has its own bucket. The embedding is complete last, and nothing waits for it.
			if (!members.empty() && (bytes + size > capacity)) {
				add(members);
				bytes = 0;
			}
			members.push_back(i);
			bytes += size;
		}
		add(members);
		for (size_t i = 0; i < params_.size(); i++)
			torch::autograd::impl::set_post_acc_grad_hooks(params_[i],
			                                               std::make_unique<Hook>(this, i));
	}

	~Buckets() {
		for (const auto &param : params_)
			torch::autograd::impl::set_post_acc_grad_hooks(param, nullptr);
	}

	// Prepares a backward pass. The sums begin in the last pass of a step.
	void begin(bool last) {
		last_ = last;
		next_ = early_ = 0;
		for (auto &bucket : buckets_) {
			bucket.missing = bucket.members;
			bucket.work.reset();
			bucket.failure = nullptr;
		}
		std::fill(complete_.begin(), complete_.end(), false);
	}

	// Starts the sums that have not started.
	void finish() {
		for (size_t i = 0; i < params_.size(); i++)
			TORCH_CHECK(complete_[i], "parameter ", i, " did not contribute to the loss");
		early_ = next_;
		while (last_ && next_ < buckets_.size())
			start(next_++);
	}

	// Waits at most `limit` for the sum of a bucket. Returns whether it is complete.
	bool wait(size_t bucket, milliseconds limit) {
		const auto &waited = buckets_.at(bucket);
		if (waited.failure)
			std::rethrow_exception(waited.failure);
		return wait_for(*waited.work, limit, group_.is_on_cuda);
	}

	size_t size() const { return buckets_.size(); }

	// Number of sums that began before the end of the last backward pass.
	size_t early() const { return early_; }

  private:
	struct Bucket {
		at::Tensor flat;
		size_t members = 0, missing = 0;
		c10::intrusive_ptr<c10d::Work> work;
		std::exception_ptr failure;
	};

	struct Hook : torch::autograd::PostAccumulateGradHook {
		Buckets *owner;
		size_t index;
		Hook(Buckets *owner, size_t index) : owner(owner), index(index) {}
		void operator()(const at::Tensor &) override { owner->completed(index); }
	};

	// Moves `members` to a new bucket.
	void add(std::vector<size_t> &members) {
		if (members.empty())
			return;
		Bucket bucket;
		int64_t count = 0;
		for (const auto member : members)
			count += params_[member].numel();
		bucket.flat = at::zeros({count}, params_[members[0]].options().requires_grad(false));
		int64_t offset = 0;
		for (const auto member : members) {
			const auto &param = params_[member];
			views_[member] = bucket.flat.narrow(0, offset, param.numel()).view(param.sizes());
			bucket_of_[member] = buckets_.size();
			offset += param.numel();
		}
		bucket.members = members.size();
		buckets_.push_back(std::move(bucket));
		members.clear();
	}

	void completed(size_t i) {
		TORCH_CHECK(!complete_[i], "the gradient of parameter ", i, " was completed twice");
		complete_[i] = true;
		adopt(i);
		buckets_[bucket_of_[i]].missing--;
		while (last_ && next_ < buckets_.size() && buckets_[next_].missing == 0)
			start(next_++);
	}

	// Moves a gradient into its bucket. Later passes of the step add to it there.
	void adopt(size_t i) {
		at::NoGradGuard guard;
		auto &gradient = params_[i].mutable_grad();
		TORCH_CHECK(gradient.defined(), "the gradient of parameter ", i, " is missing");
		if (gradient.data_ptr() == views_[i].data_ptr())
			return;
		views_[i].copy_(gradient);
		gradient = views_[i];
	}

	// Starts a bucket's sum. A failure is reported by `wait`, like a failure of the sum itself.
	void start(size_t n) {
		std::vector<at::Tensor> tensors{buckets_[n].flat};
		try {
			buckets_[n].work = group_.backend->allreduce(tensors);
		} catch (...) {
			buckets_[n].failure = std::current_exception();
		}
	}

	Group group_;
	std::vector<at::Tensor> params_, views_;
	std::vector<size_t> bucket_of_;
	std::vector<bool> complete_;
	std::vector<Bucket> buckets_;
	size_t next_ = 0, early_ = 0;
	bool last_ = false;
};

} // namespace

extern "C" {

// Creates buckets of at most `capacity` bytes for `params`, in the order in which their gradients become complete.
int shim_buckets_new(Group *group, at::Tensor *const *params, size_t n, int64_t capacity,
                     Buckets **buckets, size_t *count) {
	return guarded([&] {
		std::vector<at::Tensor> list;
		for (size_t i = 0; i < n; i++)
			list.push_back(*params[i]);
		*buckets = new Buckets(*group, std::move(list), capacity);
		*count = (*buckets)->size();
	});
}

// Call before each backward pass, with `last` in the last pass of a step.
int shim_buckets_begin(Buckets *buckets, bool last) {
	return guarded([&] { buckets->begin(last); });
}

// Call after each backward pass. Stores in `*early` how many sums began during the pass.
int shim_buckets_finish(Buckets *buckets, size_t *early) {
	return guarded([&] {
		buckets->finish();
		*early = buckets->early();
	});
}

// Waits at most `timeout_ms` for the sum of a bucket, and stores in `*done` whether it is complete.
int shim_buckets_wait(Buckets *buckets, size_t bucket, int64_t timeout_ms, bool *done) {
	return guarded([&] { *done = buckets->wait(bucket, milliseconds(timeout_ms)); });
}

// Removes the parameters' hooks. The group must outlive the buckets, and no sum may be in progress.
void shim_buckets_free(Buckets *buckets) { delete buckets; }

} // extern "C"

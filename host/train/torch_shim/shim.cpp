// C functions for the parts of libtorch 2.13 that tch 0.26 does not bind.
//
// A tensor pointer is tch's `C_tensor *`, which is an `at::Tensor *`. Arguments are borrowed; returned
// tensors are new and owned by the caller. A function that can fail returns 0 on success, else 1. After a
// failure, a call of `shim_error` on the same thread returns the reason.

#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/TensorIterator.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Generator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/variable.h>

#include "shim.h"

using shim::guarded;

namespace {

std::vector<at::Tensor> list(at::Tensor *const *tensors, size_t n) {
	std::vector<at::Tensor> out;
	out.reserve(n);
	for (size_t i = 0; i < n; i++)
		out.push_back(*tensors[i]);
	return out;
}

std::vector<at::Tensor> gradients(at::Tensor *const *params, size_t n) {
	std::vector<at::Tensor> out;
	out.reserve(n);
	for (size_t i = 0; i < n; i++) {
		TORCH_CHECK(params[i]->grad().defined(), "a parameter did not contribute to the loss");
		out.push_back(params[i]->grad());
	}
	return out;
}

// Returns whether to multiply matrices like `x` with oneDNN. For single precision on the CPU, libtorch itself
// uses MKL, which does not use the wide vector units of non-Intel processors. On a non-Intel processor with
// such units, oneDNN is twice as fast as MKL. On a processor with only AVX2, the two are equally fast.
bool one_dnn_multiplies(const at::Tensor &x) {
	return x.is_cpu() && x.scalar_type() == at::kFloat && at::globalContext().userEnabledMkldnn();
}

// Computes `x @ weight^T + bias` for matrices with oneDNN, without an autograd graph.
at::Tensor one_dnn_linear(const at::Tensor &x, const at::Tensor &weight,
                          const std::optional<at::Tensor> &bias = std::nullopt) {
	using Scalars = c10::List<std::optional<at::Scalar>>;
	using Signature = at::Tensor(const at::Tensor &, const at::Tensor &,
	                             const std::optional<at::Tensor> &, std::string_view, Scalars,
	                             std::optional<std::string_view>);
	static const auto operation = c10::Dispatcher::singleton()
	                                  .findSchemaOrThrow("mkldnn::_linear_pointwise", "")
	                                  .typed<Signature>();
	return operation.call(x, weight, bias, "none", Scalars(), std::nullopt);
}

// Computes `x @ weight^T` without an autograd graph.
at::Tensor product(const at::Tensor &x, const at::Tensor &weight) {
	return one_dnn_multiplies(x) ? one_dnn_linear(x, weight) : at::mm(x, weight.t());
}

// The forward and backward passes of GPT-2's Conv1D with oneDNN.
struct OneDnnConv1d : torch::autograd::Function<OneDnnConv1d> {
	static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &x,
	                          const at::Tensor &weight, const at::Tensor &bias) {
		context->save_for_backward({x, weight});
		return one_dnn_linear(x, weight.t(), bias);
	}

	static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
	                                               const torch::autograd::variable_list &above) {
		const auto saved = context->get_saved_variables();
		const auto &x = saved[0], &weight = saved[1], &gradient = above[0];
		// The left matrix is transposed by a single thread, so it should be the narrower one.
		const auto to_weight = x.size(1) <= gradient.size(1)
		                           ? one_dnn_linear(x.t(), gradient.t())
		                           : one_dnn_linear(gradient.t(), x.t()).t().contiguous();
		return {one_dnn_linear(gradient, weight), to_weight, gradient.sum(0)};
	}
};

// The forward and backward passes of causal self-attention with oneDNN. Maps the concatenated queries, keys
// and values, (batch, time, 3 width), to (batch, time, width). Each thread processes one head of one sequence
// at a time, and computes that head's scores in blocks of rows. The backward pass computes the scores again
// instead of storing them, so each thread needs memory for only one block. This is FlashAttention
// (arXiv:2205.14135) without tiling of the keys.
struct OneDnnAttention : torch::autograd::Function<OneDnnAttention> {
	// Number of rows in a block of scores. Smaller blocks skip more of the masked scores, but make the
	// products smaller.
	static constexpr int64_t ROWS = 256;

	// Returns the softmax of `queries @ keys^T` for consecutive queries of a head, beginning at position
	// `begin`. `mask` (ROWS, ROWS) hides future keys in the square on the diagonal.
	static at::Tensor probabilities(const at::Tensor &queries, const at::Tensor &keys, int64_t begin,
	                                const at::Tensor &mask) {
		const auto rows = queries.size(0);
		const auto scores = one_dnn_linear(queries, keys);
		scores.narrow(1, begin, rows).add_(mask.narrow(0, 0, rows).narrow(1, 0, rows));
		return at::_softmax(scores, 1, false);
	}

	static at::Tensor mask(int64_t time, const at::TensorOptions &options) {
		const auto rows = std::min(ROWS, time);
		return at::full({rows, rows}, -INFINITY, options).triu_(1);
	}

	// Calls `f(head)` for each head of each sequence, on libtorch's threads. Uses libtorch's loop over a
	// tensor of head numbers, because at::parallel_for is parallel only in code compiled with OpenMP.
	template <typename F> static void for_each_head(int64_t heads, F f) {
		auto numbers = at::arange(heads, at::kLong);
		at::TensorIterator::nullary_op(numbers)
		    .for_each(
		        [&](char **data, const int64_t *strides, int64_t n, int64_t rows) {
			        // Autograd is disabled per thread, so each worker thread must disable it too.
			        at::AutoDispatchBelowAutograd guard;
			        for (int64_t i = 0; i < n * rows; i++)
				        f(*reinterpret_cast<const int64_t *>(
				            data[0] + i % n * strides[0] + i / n * strides[1]));
		        },
		        /*grain_size=*/1);
	}

	static at::Tensor forward(torch::autograd::AutogradContext *context, const at::Tensor &qkv,
	                          int64_t heads, double scale) {
		const auto batch = qkv.size(0), time = qkv.size(1), width = qkv.size(2) / 3;
		// (3, batch * heads, time, width of a head)
		const auto parts = qkv.view({batch, time, 3, heads, width / heads})
		                       .permute({2, 0, 3, 1, 4})
		                       .contiguous()
		                       .view({3, batch * heads, time, width / heads});
		parts[0].mul_(scale);
		const auto hidden = mask(time, qkv.options());
		auto attended = at::empty({batch, time, heads, width / heads}, qkv.options());
		for_each_head(batch * heads, [&](int64_t head) {
			const auto q = parts[0][head], k = parts[1][head], v = parts[2][head];
			const auto to = attended.select(0, head / heads).select(1, head % heads);
			for (int64_t begin = 0; begin < time; begin += ROWS) {
				const auto rows = std::min(ROWS, time - begin), end = begin + rows;
				const auto p = probabilities(q.narrow(0, begin, rows), k.narrow(0, 0, end), begin,
				                             hidden);
				to.narrow(0, begin, rows).copy_(one_dnn_linear(p, v.narrow(0, 0, end).t()));
			}
		});
		context->save_for_backward({parts});
		context->saved_data["heads"] = heads;
		context->saved_data["scale"] = scale;
		return attended.view({batch, time, width});
	}

	static torch::autograd::variable_list backward(torch::autograd::AutogradContext *context,
	                                               const torch::autograd::variable_list &above) {
		const auto parts = context->get_saved_variables()[0];
		const auto heads = context->saved_data["heads"].toInt();
		const auto scale = context->saved_data["scale"].toDouble();
		const auto batch = parts.size(1) / heads, time = parts.size(2), size = parts.size(3);
		const auto gradients = above[0]
		                           .reshape({batch, time, heads, size})
		                           .transpose(1, 2)
		                           .contiguous()
		                           .view({batch * heads, time, size});
		const auto hidden = mask(time, parts.options());
		auto qkv = at::empty({batch, time, 3, heads, size}, parts.options());
		for_each_head(batch * heads, [&](int64_t head) {
			const auto q = parts[0][head], k = parts[1][head], v = parts[2][head];
			const auto to = qkv.select(0, head / heads).select(2, head % heads);
			// The gradients of keys and values are transposed, so that the wide matrix is the right operand
			// of each product. oneDNN transposes the right operand in parallel, but not the left one.
			auto dk = at::zeros({size, time}, parts.options()), dv = at::zeros_like(dk);
			for (int64_t begin = 0; begin < time; begin += ROWS) {
				const auto rows = std::min(ROWS, time - begin), end = begin + rows;
				const auto queries = q.narrow(0, begin, rows), keys = k.narrow(0, 0, end);
				const auto gradient = gradients[head].narrow(0, begin, rows);
				const auto p = probabilities(queries, keys, begin, hidden);
				const auto dp = one_dnn_linear(gradient, v.narrow(0, 0, end));
				const auto ds = at::_softmax_backward_data(dp, p, 1, at::kFloat);
				to.select(1, 0).narrow(0, begin, rows).copy_(one_dnn_linear(ds, keys.t()).mul_(scale));
				dk.narrow(1, 0, end).add_(one_dnn_linear(queries.t(), ds.t()));
				dv.narrow(1, 0, end).add_(one_dnn_linear(gradient.t(), p.t()));
			}
			to.select(1, 1).copy_(dk.t());
			to.select(1, 2).copy_(dv.t());
		});
		return {qkv.view({batch, time, 3 * heads * size}), {}, {}};
	}
};

at::Generator generator(bool cuda, int index) {
	return at::globalContext().defaultGenerator(
	    cuda ? at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index)) : at::Device(at::kCPU));
}

} // namespace

extern "C" {

const char *shim_error() { return shim::error.c_str(); }

// Makes glibc keep freed buffers in the process. By default, glibc returns the buffers of every step to the
// system, and the next step causes page faults when it allocates them again. This setting makes training on
// the CPU 1.1 to 1.25 times faster.
void shim_keep_memory() {
	mallopt(M_MMAP_THRESHOLD, 1 << 30);
	mallopt(M_TRIM_THRESHOLD, -1);
}

// Makes glibc return freed memory to the system. By default, glibc raises its threshold for returning memory
// when the first large buffers are freed, and then keeps up to 64 MiB in each thread's arena.
void shim_return_memory() { mallopt(M_TRIM_THRESHOLD, 1 << 20); }

// Stores the combined L2 norm of all gradients in `*norm`, a new 0-d tensor. If `max_norm` is above 0, scales
// the gradients down so that their norm is at most `max_norm`. Copies nothing from the device. The formula is
// that of torch.nn.utils.clip_grad_norm_.
int shim_clip_grad_norm(at::Tensor *const *params, size_t n, double max_norm, at::Tensor **norm) {
	return guarded([&] {
		at::NoGradGuard guard;
		auto grads = gradients(params, n);
		auto total = at::linalg_vector_norm(at::stack(at::_foreach_norm(grads, 2)), 2);
		if (max_norm > 0)
			at::_foreach_mul_(grads, (max_norm / (total + 1e-6)).clamp_max(1.0));
		*norm = new at::Tensor(total);
	});
}

// Performs one step of AdamW with libtorch's fused kernel, for parameters with the same learning rate and
// weight decay. `step` (0-d f32) must already include this step. If `found_inf` (0-d f32) is not null and is
// 1, nothing changes.
int shim_fused_adamw(at::Tensor *const *params, at::Tensor *const *exp_avgs,
                     at::Tensor *const *exp_avg_sqs, size_t n, at::Tensor *step, double lr,
                     double beta1, double beta2, double weight_decay, double eps,
                     at::Tensor *found_inf) {
	return guarded([&] {
		at::NoGradGuard guard;
		std::vector<at::Tensor> steps(n, *step);
		at::_fused_adamw_(list(params, n), gradients(params, n), list(exp_avgs, n),
		                  list(exp_avg_sqs, n), {}, steps, lr, beta1, beta2, weight_decay, eps,
		                  /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/{},
		                  found_inf ? std::optional<at::Tensor>(*found_inf) : std::nullopt);
	});
}

// Computes `x @ weight + bias` with an autograd graph, and stores the new tensor in `*y`. `x` is (n, in),
// `weight` (in, out), `bias` (out), and the result (n, out).
int shim_conv1d(at::Tensor *x, at::Tensor *weight, at::Tensor *bias, at::Tensor **y) {
	return guarded([&] {
		*y = new at::Tensor(one_dnn_multiplies(*x) ? OneDnnConv1d::apply(*x, *weight, *bias)
		                                           : at::addmm(*bias, *x, *weight));
	});
}

// Computes causal self-attention with an autograd graph, and stores the new tensor in `*y`. Maps the
// concatenated queries, keys and values, (batch, time, 3 width), to (batch, time, width). The scores are
// multiplied by `scale`.
int shim_causal_attention(at::Tensor *qkv, int64_t heads, double dropout, double scale,
                          at::Tensor **y) {
	return guarded([&] {
		if (one_dnn_multiplies(*qkv) && dropout == 0) {
			*y = new at::Tensor(OneDnnAttention::apply(*qkv, heads, scale));
			return;
		}
		const auto batch = qkv->size(0), time = qkv->size(1), width = qkv->size(2) / 3;
		const auto parts =
		    qkv->view({batch, time, 3, heads, width / heads}).permute({2, 0, 3, 1, 4}).unbind();
		const auto attended = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {},
		                                                       dropout, /*is_causal=*/true, scale);
		*y = new at::Tensor(attended.transpose(1, 2).reshape({batch, time, width}));
	});
}

// Computes the forward and backward passes of the head and its loss together. `hidden` is (n, width),
// `weight` (vocabulary, width), `labels` (n). The loss is the mean cross-entropy of `hidden @ weight^T` with
// `labels`. Stores the loss in `*loss`, a new 0-d tensor. Stores `scale` times the loss's gradient with
// respect to `hidden` in `*hidden_gradient`, a new tensor. Adds `scale` times the loss's gradient with
// respect to `weight` to the weight's gradient. Only `rows` rows of the logits exist at any time; their
// gradient overwrites them. Products are in bfloat16 if `bf16` is set. With `completes`, nothing else in the
// backward pass adds to the weight's gradient, so the hook that waits for this gradient is called.
int shim_linear_cross_entropy(at::Tensor *hidden, at::Tensor *weight, at::Tensor *labels,
                              int64_t rows, double scale, bool bf16, bool completes,
                              at::Tensor **loss, at::Tensor **hidden_gradient) {
	return guarded([&] {
		at::NoGradGuard guard;
		const auto n = hidden->size(0);
		const auto options = weight->options();
		const auto product_type = bf16 ? at::kBFloat16 : weight->scalar_type();
		const auto h = hidden->detach().to(product_type), w = weight->detach().to(product_type);
		auto total = at::zeros({}, options);
		auto dh = at::empty(hidden->sizes(), options);
		// The gradient of the weight, transposed: (width, vocabulary). In this order, the wide matrix is the
		// right operand of `product`. oneDNN transposes the right operand in parallel, but not the left one.
		at::Tensor dw;
		for (int64_t begin = 0; begin < n; begin += rows) {
			const auto length = std::min(rows, n - begin);
			const auto part = h.narrow(0, begin, length);
			const auto label = labels->narrow(0, begin, length).unsqueeze(1);
			auto gradient = at::log_softmax(product(part, w), 1, options.dtype().toScalarType());
			total.sub_(gradient.gather(1, label).sum());
			gradient.exp_();
			gradient.scatter_add_(1, label, at::full_like(label, -1, options));
			gradient = gradient.to(product_type);
			dh.narrow(0, begin, length).copy_(product(gradient, w.t()));
			const auto change = product(part.t(), gradient.t()).to(options.dtype());
			dw = dw.defined() ? dw.add_(change) : change;
		}
		const double by = scale / static_cast<double>(n);
		if (weight->grad().defined())
			weight->mutable_grad().add_(dw.t(), by);
		else
			weight->mutable_grad() = dw.t().contiguous().mul_(by);
		if (const auto &hook = torch::autograd::impl::post_acc_grad_hooks(*weight); hook && completes)
			(*hook)(*weight);
		*loss = new at::Tensor(total.div_(n));
		*hidden_gradient = new at::Tensor(dh.mul_(by));
	});
}

// Removes the parameters' gradients, so that the next backward pass does not have to add to zeros.
int shim_clear_gradients(at::Tensor *const *params, size_t n) {
	return guarded([&] {
		for (size_t i = 0; i < n; i++)
			params[i]->mutable_grad().reset();
	});
}

// Runs the backward pass from `tensor`, with `gradient` as the gradient of `tensor`.
int shim_backward_with(at::Tensor *tensor, at::Tensor *gradient) {
	return guarded([&] { tensor->backward(*gradient); });
}

// Stores the state of the default generator as bytes in `*state`, a new 1-d u8 tensor.
int shim_rng_state(bool cuda, int index, at::Tensor **state) {
	return guarded([&] {
		auto gen = generator(cuda, index);
		std::lock_guard<std::mutex> lock(gen.mutex());
		*state = new at::Tensor(gen.get_state());
	});
}

int shim_set_rng_state(bool cuda, int index, at::Tensor *state) {
	return guarded([&] {
		auto gen = generator(cuda, index);
		std::lock_guard<std::mutex> lock(gen.mutex());
		gen.set_state(*state);
	});
}

} // extern "C"

package org.phi3mobile

import java.io.File
import java.lang.reflect.InvocationTargetException
import java.lang.reflect.Method
import java.nio.FloatBuffer

/**
 * org.pytorch.executorch.Module of the package executorch-android, which the app adds or not: by reflection, so the SDK does not
 * need it. What is called: Module.load(String, int, int), forward(EValue...), destroy(), Tensor.fromBlob(long[], long[]),
 * EValue.from(Tensor), EValue.toTensor(), Tensor.getDataAsFloatArray().
 */
internal class ExecuTorchEngine(program: File, threads: Int, private val vocab: Long) : Engine {
    private val module: Any
    private val forward: Method
    private val destroy: Method
    private val value = Class.forName(EVALUE)
    private val tensor = Class.forName(TENSOR)
    private val fromBlob = tensor.getMethod("fromBlob", LongArray::class.java, LongArray::class.java)
    private val fromTensor = value.getMethod("from", tensor)
    private val toTensor = value.getMethod("toTensor")
    private val floats = tensor.getMethod("getDataAsFloatArray")

    init {
        val type = Class.forName(MODULE)
        val whole = Int::class.javaPrimitiveType
        val mapped = type.getField("LOAD_MODE_MMAP").getInt(null)
        module = told { type.getMethod("load", String::class.java, whole, whole).invoke(null, program.path, mapped, threads) }
        forward = type.getMethod("forward", java.lang.reflect.Array.newInstance(value, 0).javaClass)
        destroy = type.getMethod("destroy")
    }

    override fun forward(tokens: LongArray, position: Long, isLong: Boolean, logits: FloatBuffer) {
        val inputs = java.lang.reflect.Array.newInstance(value, 2)
        java.lang.reflect.Array.set(inputs, 0, input(tokens, longArrayOf(1, tokens.size.toLong())))
        // As phi3mobile/engines/base.py marks it.
        java.lang.reflect.Array.set(inputs, 1, input(longArrayOf(if (isLong) position or LONG_REGIME else position), longArrayOf(1)))
        val outputs = told { forward.invoke(module, inputs) as Array<*> }
        val found = told { floats.invoke(toTensor.invoke(outputs[0])) as FloatArray }
        if (found.size.toLong() != tokens.size * vocab) {
            throw Phi3Exception("the program gave ${found.size} logits for ${tokens.size} tokens of $vocab: export the bundle again")
        }
        logits.put(found)
    }

    override fun close() {
        told { destroy.invoke(module) }
    }

    private fun input(values: LongArray, shape: LongArray): Any? = fromTensor.invoke(null, fromBlob.invoke(null, values, shape))

    private fun <T> told(call: () -> T): T = try {
        call()
    } catch (error: InvocationTargetException) {
        throw Phi3Exception("ExecuTorch says: ${error.targetException.message}", error.targetException)
    }

    companion object {
        private const val MODULE = "org.pytorch.executorch.Module"
        private const val EVALUE = "org.pytorch.executorch.EValue"
        private const val TENSOR = "org.pytorch.executorch.Tensor"
        private const val LONG_REGIME = 1L shl 30

        fun isThere(): Boolean = runCatching { Class.forName(MODULE, false, ExecuTorchEngine::class.java.classLoader) }.isSuccess
    }
}

package org.phi3mobile

import java.io.IOException
import java.net.HttpURLConnection
import java.net.URL
import java.net.URLEncoder

/** May be tried again, after so many milliseconds where the server says. */
internal class Passing(message: String, val afterMs: Long? = null) : IOException(message)

/** Requests for the files of a bundle's folder on a server. [stop] ends the one that is open, from any thread. */
internal class Http(private val address: String, private val headers: Map<String, String>, private val retry: Retry) {
    @Volatile
    private var connection: HttpURLConnection? = null

    @Volatile
    private var stopped = false

    /** Throws Phi3Exception: the address is none that is fetched from. */
    fun check() {
        allowed(url(address))
    }

    fun stop() {
        stopped = true
        connection?.disconnect()
    }

    /**
     * A file of the folder from byte [have] on, if it is still the version of [mark]. Follows redirects by itself: HttpURLConnection does not
     * from one protocol to another, and would give headers to strangers.
     */
    fun open(path: String, have: Long, mark: String?): HttpURLConnection {
        val start = url(address.trimEnd('/').removeSuffix("/${Manifest.FILE}") + "/" + path.split('/').joinToString("/") { escaped(it) })
        var url = start
        repeat(MOST_REDIRECTS) {
            allowed(url)
            val made = url.openConnection() as HttpURLConnection
            connection = made
            if (stopped) throw Stopped()
            made.instanceFollowRedirects = false
            made.connectTimeout = retry.timeoutMs
            made.readTimeout = retry.timeoutMs
            made.setRequestProperty("Accept-Encoding", "identity")
            if (url.host == start.host && url.port == start.port) headers.forEach { (name, value) -> made.setRequestProperty(name, value) }
            if (have > 0) made.setRequestProperty("Range", "bytes=$have-")
            if (mark != null) made.setRequestProperty("If-Range", mark)
            if (made.responseCode !in REDIRECTS) return made
            val next = made.getHeaderField("Location") ?: throw Phi3Exception("$url leads elsewhere and does not say where")
            made.disconnect()
            url = URL(url, next)
        }
        throw Phi3Exception("$start leads from one address to another for ever: give the last one")
    }

    /** What an answer says that brings no file: [Passing], or the end. */
    fun failure(from: HttpURLConnection, path: String): Exception {
        val code = from.responseCode
        if (code == 408 || code == 425 || code == 429 || code >= 500 || code < 100) {
            val after = from.getHeaderField("Retry-After")?.trim()?.toLongOrNull()?.let { minOf(it * 1000, retry.mostMs) }
            return Passing("the server says $code", after)
        }
        val why = when (code) {
            401, 403 -> "it wants to know who asks: give headers"
            404, 410 -> "it is not there: give the address of the bundle's folder"
            else -> "it can't be fetched"
        }
        return Phi3Exception("the server says $code for $path: $why")
    }

    private fun url(text: String): URL = try {
        URL(text)
    } catch (error: IOException) {
        throw Phi3Exception("$text is no address: give https://...", error)
    }

    private fun allowed(url: URL) {
        if (url.protocol == "https" || (url.protocol == "http" && url.host in LOOPBACK)) return
        throw Phi3Exception("$url is not fetched: models come over https only")
    }

    private fun escaped(name: String): String = URLEncoder.encode(name, "UTF-8").replace("+", "%20")

    private companion object {
        const val MOST_REDIRECTS = 6
        val REDIRECTS = setOf(301, 302, 303, 307, 308)
        val LOOPBACK = setOf("127.0.0.1", "localhost", "[::1]")
    }
}

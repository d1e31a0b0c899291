package org.phi3mobile

/** What went wrong, in one line for people: what was given, what is allowed, what to do. */
public class Phi3Exception(message: String, cause: Throwable? = null) : RuntimeException(message, cause)

package org.phi3mobile.android

import android.content.Context
import android.net.Uri
import android.provider.DocumentsContract
import org.phi3mobile.BundleSource
import java.io.FileNotFoundException
import java.io.InputStream

/** A folder that the system's picker gave (ACTION_OPEN_DOCUMENT_TREE), for ModelStore.copy. Needs no permission. */
public class TreeSource(context: Context, private val tree: Uri) : BundleSource {
    private val resolver = context.contentResolver

    override fun open(path: String): InputStream {
        var document = DocumentsContract.getTreeDocumentId(tree)
        for (name in path.split('/')) document = child(document, name) ?: throw FileNotFoundException("$path is not in the folder")
        return resolver.openInputStream(DocumentsContract.buildDocumentUriUsingTree(tree, document))
            ?: throw FileNotFoundException("$path can't be opened")
    }

    private fun child(document: String, name: String): String? {
        val children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, document)
        resolver.query(children, COLUMNS, null, null, null)?.use { found ->
            while (found.moveToNext()) if (found.getString(1) == name) return found.getString(0)
        }
        return null
    }

    private companion object {
        val COLUMNS = arrayOf(DocumentsContract.Document.COLUMN_DOCUMENT_ID, DocumentsContract.Document.COLUMN_DISPLAY_NAME)
    }
}
